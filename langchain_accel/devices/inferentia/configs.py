"""From a model folder to a config that optimum-neuron computes as transformers does, or a clear refusal.

What is refused here exports without a word and answers wrongly: optimum-neuron 0.4.5 ignores these settings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from langchain_accel.devices import ropes
from langchain_accel.errors import ModelRejected, PlanRejected

FAMILIES = ("granite", "llama", "phi3", "qwen2", "qwen3", "smollm3")
"""Model types that this device serves; optimum-neuron's mixture-of-experts classes are not among them."""

_ROPES = {"llama": ("llama3", "linear", "yarn")}


def read_config(folder: Path, max_len: int) -> Any:
    """Read and judge the config of a model folder.

    Args:
        folder: with `config.json`.
        max_len: columns of a row.

    Returns:
        transformers' config object.

    Raises:
        ModelRejected: there is none, or the model would answer wrongly.
        PlanRejected: `max_len` is longer than the model reads.
    """
    from transformers import AutoConfig

    try:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        msg = f"config.json of {folder} cannot be used: {error}"
        raise ModelRejected(msg) from error
    if config.model_type in FAMILIES:
        ropes.adopt(config, written)
    refuse(config, max_len)
    return config


def refuse(config: Any, max_len: int) -> None:
    """Refuse a model that this device does not serve.

    Args:
        config: transformers' config object.
        max_len: columns of a row.

    Raises:
        ModelRejected: the model would answer wrongly.
        PlanRejected: `max_len` is longer than the model reads.
    """
    if config.model_type not in FAMILIES:
        msg = f"model type {config.model_type!r} is not served on Inferentia; these are: {', '.join(FAMILIES)}"
        raise ModelRejected(msg)
    _refuse_ignored(config)
    _refuse_longer(config, max_len)


def _refuse_ignored(config: Any) -> None:
    ropes = getattr(config, "rope_scaling", None) or {}
    rope = ropes.get("rope_type", ropes.get("type", "default"))
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    reasons = {
        f"its rope scaling {rope!r} is not computed": rope not in ("default", *_ROPES.get(config.model_type, ())),
        "its attention biases are left out": getattr(config, "attention_bias", False),
        f"its head_dim {width} is not hidden_size / heads": config.model_type != "qwen3"
        and width * heads != config.hidden_size,
        "only a part of each head is rotated": getattr(config, "partial_rotary_factor", None) not in (None, 1.0),
        "its weights are quantized": getattr(config, "quantization_config", None) is not None,
    }
    for reason, applies in reasons.items():
        if applies:
            msg = (
                f"this {config.model_type} model cannot be served: optimum-neuron 0.4.5 would answer wrongly: {reason}"
            )
            raise ModelRejected(msg)


def _refuse_longer(config: Any, max_len: int) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    if positions and max_len > positions:
        msg = f"max_len={max_len} is beyond the {positions} positions of this model; set max_len <= {positions}"
        raise PlanRejected(msg)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window and max_len > window:
        msg = (
            f"max_len={max_len} is longer than this model's attention window of {window} tokens, and optimum-neuron "
            f"0.4.5 attends to everything; set max_len <= {window}"
        )
        raise PlanRejected(msg)
