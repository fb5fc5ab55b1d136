"""From a model folder to a config that mindformers computes as transformers does, or a clear refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_accel.errors import ModelRejected, PlanRejected

PACKED = ("qwen2", "qwen3")
"""Model types of mindformers' mcore models that were seen to compute what transformers computes."""

PADDED = ("llama",)
"""Model types of its older models, which one rank holds whole."""

LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
"""The numbers of Llama 3's rope scaling."""

_SILENT = ("attention_bias", "mlp_bias")  # parts of a Llama that mindformers leaves out without a word


def read_config(folder: Path, max_len: int) -> dict[str, Any]:
    """Read and judge the config of a model folder.

    Args:
        folder: with `config.json`.
        max_len: columns of a row.

    Returns:
        the config in the form of transformers 4, which mindformers reads.

    Raises:
        ModelRejected: there is none, or the model would not be served rightly.
        PlanRejected: `max_len` is longer than the model reads.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"config.json of {folder} cannot be used: {error!r}"
        raise ModelRejected(msg) from error
    if kind not in PACKED + PADDED:
        msg = f"model type {kind!r} is not served on Ascend; these are: {', '.join(sorted(PACKED + PADDED))}"
        raise ModelRejected(msg)
    if any(folder.glob("*.ckpt")) and not any(folder.glob("*.safetensors")):
        msg = f"{folder} holds MindSpore .ckpt files; give the Hugging Face folder that they were converted from"
        raise ModelRejected(msg)
    config = _older(config)
    _refuse_unsupported(config, max_len)
    longest = config.get("max_position_embeddings")
    if longest is not None and max_len > longest:
        msg = f"max_len={max_len} is longer than the {longest} positions that the model reads; set max_len <= {longest}"
        raise PlanRejected(msg)
    return config


def packed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config as one of an mcore model: mindformers has no Llama there, but that is a Qwen2 without biases."""
    if config["model_type"] in PACKED:
        return config
    return {
        **config,
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "attention_bias": False,
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
    }


def _older(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config as transformers 4 writes it: mindformers reads other names as if they were not there."""
    ropes = dict(config.pop("rope_parameters", None) or {})
    if "rope_theta" not in config:
        config["rope_theta"] = ropes.pop("rope_theta", 10000.0)
    scaling = config.get("rope_scaling") or ropes
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    config["rope_scaling"] = None if kind == "default" else {**scaling, "rope_type": kind}
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "qwen2":  # every Qwen2 has them, so none says it
        config["attention_bias"] = True
    return config


def _refuse_unsupported(config: dict[str, Any], max_len: int) -> None:
    found = []
    kind = config["model_type"]
    scaling = config["rope_scaling"]
    if scaling and not (kind in PADDED and scaling["rope_type"] == "llama3"):
        found.append(f"rope scaling {scaling['rope_type']!r}")
    elif scaling and (lacking := [name for name in LLAMA3 if name not in scaling]):
        found.append(f"rope scaling 'llama3' without {', '.join(lacking)}")
    window = config.get("sliding_window")
    if config.get("use_sliding_window") and window and window < max_len:
        found.append(f"a sliding window of {window} tokens, shorter than max_len={max_len}")
    if config.get("hidden_act", "silu") != "silu":
        found.append(f"the activation {config['hidden_act']!r}")
    if config.get("quantization_config"):
        found.append("quantised weights")
    if kind in PADDED:
        found += [f"{name}=true" for name in _SILENT if config.get(name)]
        width = config["hidden_size"] // config["num_attention_heads"]
        if config.get("head_dim", width) not in (None, width):
            found.append(f"head_dim={config['head_dim']} beside hidden_size / num_attention_heads = {width}")
    if found:
        msg = f"this {kind} has {', '.join(found)}, which is not served on Ascend; take a model without it"
        raise ModelRejected(msg)
