"""From a model folder to a transformers model, or a clear refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from langchain_accel.devices import ropes
from langchain_accel.errors import ModelRejected

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "attention", "chunked_attention"})
_MAX_NAMED = 3


def read_config(folder: Path, *, trust_remote_code: bool) -> Any:
    """Read the config of a model folder.

    Raises:
        ModelRejected: there is none, it is broken, or its model type is unknown or needs code from the folder.
    """
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is not a folder"
        msg = f"{folder} {what}; give the folder that holds config.json and the safetensors files"
        raise ModelRejected(msg)
    with _quiet(), _refusing(folder, "config.json cannot be used", trust_remote_code=trust_remote_code):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    if int(transformers.__version__.split(".")[0]) < 5:  # noqa: PLR2004
        ropes.adopt(config, json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return config


def refuse_unsupported(config: Any, max_len: int) -> None:
    """Refuse what can be seen from a config to be no plain decoder of text; the self-check finds the rest.

    Raises:
        ModelRejected: names the reason.
    """
    architecture = AutoModelForCausalLM._model_mapping.get(type(config), None)  # noqa: SLF001  as from_pretrained does
    foreign = sorted({*(getattr(config, "layer_types", None) or ())} - _LAYER_TYPES)
    chunk = getattr(config, "attention_chunk_size", None) or max_len
    reasons = {
        "it is an encoder-decoder, and a row holds the sequence of a decoder only": config.is_encoder_decoder,
        "it takes images or audio; only text models are served": any(
            getattr(config, name, None) is not None for name in ("vision_config", "audio_config")
        ),
        "its weights are quantized; give the float32, float16 or bfloat16 checkpoint it was made from": getattr(
            config, "quantization_config", None
        ),
        "it keeps a recurrent state, which has no columns to resume from": getattr(architecture, "_is_stateful", False),
        f"its layers {foreign} do not keep a key and a value for every column": foreign,
        f"it attends in chunks of {chunk} columns; set max_len <= {chunk}": max_len > chunk,
    }
    for reason, applies in reasons.items():
        if applies:
            msg = f"model type {config.model_type!r} cannot be served: {reason}"
            raise ModelRejected(msg)


def load_model(folder: Path, config: Any, dtype: torch.dtype, *, trust_remote_code: bool, **extra: Any) -> Any:
    """Load a causal language model for inference.

    Weights come from safetensors only and go straight to `dtype`; where the files hold that dtype, they stay pages of
    the mapped files.

    Args:
        folder: with config and safetensors.
        config: the model's, as read.
        dtype: of the weights.
        trust_remote_code: run Python code that comes with the folder.
        extra: handed to `from_pretrained`; may name another `attn_implementation`.

    Raises:
        ModelRejected: the files are missing or broken, or do not hold every weight in the shape the config asks for.
    """
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    dtype_name = "dtype" if (major, minor) >= (4, 56) else "torch_dtype"
    with _quiet(), _refusing(folder, "the weights cannot be loaded", trust_remote_code=trust_remote_code):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            low_cpu_mem_usage=True,
            output_loading_info=True,
            **{
                # What the self-check measures against: some versions drop the soft cap from their default attention.
                "attn_implementation": "eager" if getattr(config, "attn_logit_softcapping", None) else None,
                dtype_name: dtype,
                **extra,
            },
        )
    # transformers fills these with random numbers and a warning; an answer from them would be noise.
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(kind) or ())
        if names:
            named = ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
            msg = (
                f"{folder}: {len(names)} weights of {type(model).__name__} are {kind.removesuffix('_keys')} in the "
                f"safetensors files ({named}); config.json and weights do not belong together, fetch the model again"
            )
            raise ModelRejected(msg)
    return model.eval().requires_grad_(False)


@contextmanager
def _refusing(folder: Path, what: str, *, trust_remote_code: bool) -> Iterator[None]:
    """Turn whatever transformers raises about a folder into a refusal that names it."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip()
        if not trust_remote_code and "trust_remote_code" in reason:
            msg = (
                f"{folder} brings its own Python code, which is not run by default; read that code, and if you trust "
                "it, set trust_remote_code=True"
            )
        else:
            msg = f"{folder}: {what}: {reason}"
        raise ModelRejected(msg) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the terminal: what matters is raised or reported."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
