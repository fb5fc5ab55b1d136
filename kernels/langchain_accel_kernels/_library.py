"""The shared library and the structures of its C interface, as `native/types.h` and `native/interface.h` say."""

from __future__ import annotations

from ctypes import CDLL, POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path


class Linear(Structure):
    """`accel::Linear`."""

    _fields_ = (
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("dtype", c_int32),
    )


class Shape(Structure):
    """`accel::Shape`."""

    _fields_ = (
        *((name, c_int32) for name in ("layers", "hidden", "inner", "heads", "kv_heads", "width", "rotary")),
        *((name, c_int32) for name in ("vocabulary", "rows", "max_len")),
        *((name, c_int32) for name in ("cache_dtype", "embedding_dtype", "activation")),
        *((name, c_int32) for name in ("gated", "centred", "parallel")),
        *((name, c_float) for name in ("epsilon", "scaling", "embedding_factor", "residual_factor")),
        *((name, c_float) for name in ("logits_factor", "logits_cap")),
    )


class Norm(Structure):
    """`accel::Norm`."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class Layer(Structure):
    """`accel::Layer`."""

    _fields_ = (
        *((name, Linear) for name in ("qkv", "out", "gate_up", "down")),
        *((name, Norm) for name in ("norm", "inner_norm", "query_norm", "key_norm", "after_attention", "after_mlp")),
        *((name, c_void_p) for name in ("cosines", "sines")),
        ("window", c_int32),
        ("soft_cap", c_float),
        ("column_bias", c_void_p),
    )


class Cache(Structure):
    """`accel::Cache`."""

    _fields_ = (*((name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales")), ("columns", c_int64))


class Ends(Structure):
    """`accel::Ends`."""

    _fields_ = (
        ("embedding", c_void_p),
        ("embedding_norm", Norm),
        ("norm", Norm),
        ("head", Linear),
    )


_NUMBERS = c_void_p
_SIGNATURES = {
    "accel_error": (c_char_p, ()),
    "accel_instructions": (c_char_p, ()),
    "accel_packed_bytes": (c_int64, (c_int32, c_int32, c_int32)),
    "accel_pack": (c_int, (_NUMBERS, *[c_int32] * 4, *[_NUMBERS] * 3)),
    "accel_lay_out": (c_int, (_NUMBERS, *[c_int32] * 3, _NUMBERS)),
    "accel_create_parts": (c_void_p, (c_int32,)),
    "accel_linear": (c_int, (c_void_p, POINTER(Linear), _NUMBERS, c_int64, _NUMBERS)),
    "accel_attend": (
        c_int,
        (c_void_p, POINTER(Shape), POINTER(Layer), POINTER(Cache), c_int32, _NUMBERS, c_int64, *[_NUMBERS] * 2),
    ),
    "accel_destroy_parts": (None, (c_void_p,)),
    "accel_create": (c_void_p, (POINTER(Shape), c_int32)),
    "accel_set_layer": (c_int, (c_void_p, c_int32, POINTER(Layer))),
    "accel_set_ends": (c_int, (c_void_p, POINTER(Ends))),
    "accel_step": (c_int, (c_void_p, c_int32, *[_NUMBERS] * 3, c_int32, *[_NUMBERS] * 2)),
    "accel_copy_row": (c_int, (c_void_p, c_int32, c_int32, c_int32)),
    "accel_destroy": (None, (c_void_p,)),
}


def load() -> CDLL:
    """Load the library that was built with this package."""
    library = CDLL(str(Path(__file__).with_name("libaccel.so")))
    for name, (returned, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = returned, list(arguments)
    return library
