"""Which models the whole-step kernels express: pure decisions on a config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from langchain_accel.devices.memory import column_bytes, first, head_counts
from langchain_accel.devices.native.family import FAMILY

_LANES = 16
_NIBBLE_BYTES = 9 / 16  # of a number in 4 bits, with its share of a factor
KEPT = 0.1
"""Share of the products, in size, that stay in 8 bits where the others have 4."""
_ROPES = frozenset({"default", "linear", "llama3", "yarn"})  # the others change with the length of the sequence
_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast"), "gelu_tanh"),
}


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
    return next(_refusals(config), None)


def _refusals(config: Mapping[str, Any]) -> Iterator[str]:
    kind = config["model_type"]
    if kind not in FAMILY:
        yield f"model type {kind!r} is none of {', '.join(sorted(FAMILY))}"
        return
    if (name := _activation(config)) not in _ACTIVATIONS:
        yield f"its activation is {name!r}"
    if asked := [flag for flag in FAMILY[kind].foreign if config.get(flag)]:
        yield f"it asks for {', '.join(asked)}"
    for what, size in (("hidden_size", config["hidden_size"]), ("intermediate_size", inner(config))):
        if size % _LANES:
            yield f"its {what} of {size} is no multiple of {_LANES}"
    if width(config) % _LANES:
        yield f"its heads are {width(config)} wide, which is no multiple of {_LANES}"
    rope = first(config, "rope_parameters", "rope_scaling", default={})
    each = [one for one in rope.values() if isinstance(one, Mapping)]
    if FAMILY[kind].ropes and not each:
        yield "this transformers does not say which layers have which rotary positions (5 does)"
    for one in each or [rope]:
        moving = one.get("rope_type") or one.get("type") or "default"
        if moving not in _ROPES:
            yield f"its rotary positions of type {moving!r} change with the length of the prompt"


def activation(config: Mapping[str, Any]) -> str:
    """Return the kernels' name of a model's activation."""
    return _ACTIVATIONS[_activation(config)]


def _activation(config: Mapping[str, Any]) -> str:
    act = FAMILY[config["model_type"]].act
    return str(act or first(config, "hidden_activation", "hidden_act", "activation"))


def inner(config: Mapping[str, Any]) -> int:
    """Return the width of what a layer's second half takes down."""
    return int(first(config, "intermediate_size", "ffn_hidden_size", default=4 * config["hidden_size"]))


def depth(config: Mapping[str, Any]) -> int:
    """Return how many layers a model has."""
    return int(first(config, "num_hidden_layers", "n_layer"))


def alibi(config: Mapping[str, Any]) -> bool:
    """Return whether a model has linear biases for positions (ALiBi, Press et al. 2022, arXiv:2108.12409)."""
    return FAMILY[config["model_type"]].alibi or bool(config.get("alibi"))


def parallel(config: Mapping[str, Any]) -> bool:
    """Return whether both halves of a layer read what came into it."""
    return any(config.get(flag) for flag in FAMILY[config["model_type"]].parallel)


def width(config: Mapping[str, Any]) -> int:
    """Return the width of a head."""
    asked = None if FAMILY[config["model_type"]].names.fused else config.get("head_dim")
    return int(asked or config["hidden_size"] // head_counts(config)[0])


def scaling(config: Mapping[str, Any]) -> float:
    """Return the factor on the scores of a model's attention."""
    member = FAMILY[config["model_type"]]
    if member.scaling:
        return float(config[member.scaling])
    return float((config[member.query_scalar] if member.query_scalar else width(config)) ** -0.5)


def ropes(config: Mapping[str, Any]) -> list[str]:
    """Return for each layer the name of its rotary positions: its type, where types differ; "" for none."""
    rope, layers = config.get("rope_parameters") or {}, depth(config)
    if alibi(config):
        return [""] * layers
    if any(isinstance(each, Mapping) for each in rope.values()):
        return list(config["layer_types"])
    rotated = config.get("no_rope_layers") or [1] * layers  # which says 1 where they are
    return ["rope" if each else "" for each in rotated]


def windows(config: Mapping[str, Any]) -> list[int]:
    """Return the columns that a token sees in each layer, itself included; 0 for all."""
    layers = depth(config)
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
    hidden, head = config["hidden_size"], width(config)
    number = 2 if "bfloat16" in str(first(config, "dtype", "torch_dtype")) else 4
    halves = 3 if FAMILY[config["model_type"]].gated else 2
    layer = hidden * head * (2 * heads + 2 * kv_heads) + halves * hidden * inner(config)
    products = {"exact": number, "int8": 1, "int4": KEPT + (1 - KEPT) * _NIBBLE_BYTES}[weights]
    head_number = number if weights == "exact" else 1
    ends = config["vocab_size"] * hidden * (head_number + number)
    return int(depth(config) * layer * products + ends)


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
