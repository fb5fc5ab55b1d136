"""Which models the whole-step kernels express: pure decisions on a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from langchain_accel.devices.memory import column_bytes, first, head_counts

_LANES = 16
_NIBBLE_BYTES = 9 / 16  # of a number in 4 bits, with its share of a factor
KEPT = 0.1
"""Share of the products, in size, that stay in 8 bits where the others have 4."""
_ROPES = frozenset({"default", "linear", "llama3", "yarn"})  # the others change with the length of the sequence
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Member:
    """How one model type differs from Llama.

    Attributes:
        norm_offset: added to the weights of all norms.
        embedding_factor: name of the config's factor on embedded tokens; None for 1.
        rooted: embedded tokens are multiplied by the root of the hidden size, in the dtype of the weights.
        scaling: name of the config's factor on the scores; None for one over the root of a head's width.
        residual_factor: name of the config's factor on what is added to the residual stream; None for 1.
        logits_divisor: name of the config's number that the logits are divided by; None for 1.
    """

    norm_offset: float = 0.0
    embedding_factor: str | None = None
    rooted: bool = False
    scaling: str | None = None
    residual_factor: str | None = None
    logits_divisor: str | None = None


FAMILY: dict[str, Member] = {
    "llama": Member(),
    "mistral": Member(),
    "qwen2": Member(),
    "qwen3": Member(),
    "phi3": Member(),
    "gemma": Member(norm_offset=1.0, rooted=True),
    "granite": Member(
        embedding_factor="embedding_multiplier",
        scaling="attention_multiplier",
        residual_factor="residual_multiplier",
        logits_divisor="logits_scaling",
    ),
}
"""Model types whose layers are Llama's, but for what is said here; biases and norms of heads are read off the model."""


def unusable(config: Mapping[str, Any]) -> str | None:
    """Return why the kernels do not serve a model by whole steps on this machine; None where they do."""
    return absent() or refusal(config)


def absent() -> str | None:
    """Return why there are no kernels on this machine; None where there are."""
    if find_spec("langchain_accel_kernels") is None:
        return "langchain-accel-kernels is not installed (pip install ./kernels in a copy of the source)"
    import langchain_accel_kernels as kernels

    if kernels.instructions() is None:
        return "this processor has neither AVX2 nor AVX-512 VNNI"
    return None


def refusal(config: Mapping[str, Any]) -> str | None:
    """Return why the kernels cannot express a model; None where they can.

    Args:
        config: the model's, with the defaults of its class filled in.
    """
    kind = config["model_type"]
    if kind not in FAMILY:
        return f"model type {kind!r} is none of {', '.join(sorted(FAMILY))}"
    name = first(config, "hidden_activation", "hidden_act")
    if name not in _ACTIVATIONS:
        return f"its activation is {name!r}"
    for what in ("hidden_size", "intermediate_size"):
        if config[what] % _LANES:
            return f"its {what} of {config[what]} is no multiple of {_LANES}"
    if width(config) % _LANES:
        return f"its heads are {width(config)} wide, which is no multiple of {_LANES}"
    rope = first(config, "rope_parameters", "rope_scaling", default={})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    return None if kind in _ROPES else f"its rotary positions of type {kind!r} change with the length of the prompt"


def activation(config: Mapping[str, Any]) -> str:
    """Return the kernels' name of a model's activation."""
    return _ACTIVATIONS[first(config, "hidden_activation", "hidden_act")]


def width(config: Mapping[str, Any]) -> int:
    """Return the width of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def windows(config: Mapping[str, Any]) -> list[int]:
    """Return the columns that a token sees in each layer, itself included; 0 for all."""
    layers = config["num_hidden_layers"]
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return [0] * layers
    types = config.get("layer_types") or ["sliding_attention"] * layers
    return [int(window) if kind == "sliding_attention" else 0 for kind in types]


def weight_bytes(config: Mapping[str, Any], weights: str) -> int:
    """Return the bytes of a packed model: its products, and the embedding as it came.

    Args:
        config: the model's, with the defaults of its class filled in.
        weights: `"exact"`, `"int8"` or `"int4"`.
    """
    heads, kv_heads = head_counts(config)
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], width(config)
    number = 2 if "bfloat16" in str(first(config, "dtype", "torch_dtype")) else 4
    layer = hidden * head * (2 * heads + 2 * kv_heads) + 3 * hidden * inner
    products = {"exact": number, "int8": 1, "int4": KEPT + (1 - KEPT) * _NIBBLE_BYTES}[weights]
    head_number = number if weights == "exact" else 1
    ends = config["vocab_size"] * hidden * (head_number + number)
    return int(config["num_hidden_layers"] * layer * products + ends)


def cache_dtype(dtype: str, kv_cache: str) -> str:
    """Return the dtype of keys and values.

    Args:
        dtype: `"float32"`, or another one, `"auto"` among them.
        kv_cache: `"int8"`, or `"auto"`: bfloat16 unless the dtype is float32.
    """
    if kv_cache == "int8":
        return "int8"
    return "float32" if dtype == "float32" else "bfloat16"


def cache_bytes(config: Mapping[str, Any], dtype: str, kv_cache: str) -> int:
    """Return the bytes of a column of keys and values in all layers, with the scales of 8-bit ones."""
    held = cache_dtype(dtype, kv_cache)
    numbers = column_bytes(config, {"int8": 1, "bfloat16": 2, "float32": 4}[held])
    return numbers + (numbers // width(config) * 4 if held == "int8" else 0)
