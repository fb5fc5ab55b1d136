"""Weights laid out for the kernels, as they are or rounded to integers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langchain_accel_kernels import _library

library = _library.load()

PANEL = 32
"""Outputs of a weight that lie together; scales and biases are padded to a multiple of it."""

PACKED = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3, "bfloat16_pairs": 4}
"""Dtypes of packed weights, and the library's codes of them."""

_DTYPES = {np.dtype(np.float32): "float32", np.dtype(np.uint16): "bfloat16"}


@dataclass(frozen=True)
class PackedLinear:
    """A linear layer, its weights as numbers, or in integers with a scale for each output.

    Attributes:
        weight: uint8, `[packed_bytes(dtype, outputs, inputs)]`, laid out for the kernels.
        scales: float32, `[ceil(outputs / 32) * 32]`; None for numbers.
        bias: float32, as long as scales are, or None.
        inputs: width of the input.
        outputs: width of the output.
        dtype: of the weights: `"float32"`, `"bfloat16"`, `"bfloat16_pairs"`, which rounds its inputs to bfloat16, too,
            `"int8"`, or `"int4"`, in which 16 inputs of an output share a factor as well.
    """

    weight: NDArray[np.uint8]
    scales: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None
    inputs: int
    outputs: int
    dtype: str = "int8"

    @cached_property
    def structure(self) -> _library.Linear:
        """What the library takes; valid as long as this object."""
        bias = None if self.bias is None else self.bias.ctypes.data
        scales = None if self.scales is None else self.scales.ctypes.data
        return _library.Linear(self.weight.ctypes.data, scales, bias, self.inputs, self.outputs, PACKED[self.dtype])


def instructions() -> str | None:
    """Return the instruction set in use: `"amx"`, `"avx512bf16"`, `"avx512vnni"` or `"avx2"`; None where none fits."""
    name: bytes | None = library.accel_instructions()
    return None if name is None else name.decode()


def check(returned: int) -> None:
    """Raise what a function of the library says went wrong.

    Raises:
        RuntimeError: with the library's reason.
    """
    if returned != 0:
        raise RuntimeError(library.accel_error().decode())


def dtype_code(numbers: NDArray[Any]) -> int:
    """Return the library's code of a dtype: float32, or bfloat16 as uint16.

    Raises:
        TypeError: it is another dtype.
    """
    if numbers.dtype not in _DTYPES:
        msg = f"numbers must be float32, or bfloat16 as uint16, got {numbers.dtype}"
        raise TypeError(msg)
    return PACKED[_DTYPES[numbers.dtype]]


def packed_bytes(dtype: str, outputs: int, inputs: int) -> int:
    """Return the bytes of a packed weight: 4.5 bits for each number of an int4; widths are rounded up."""
    size: int = library.accel_packed_bytes(PACKED[dtype], outputs, inputs)
    return size


def pack(
    weight: NDArray[Any],
    bias: NDArray[np.float32] | None = None,
    *,
    dtype: str | None = None,
    importance: NDArray[np.float32] | None = None,
) -> PackedLinear:
    """Lay a weight out for the kernels.

    Args:
        weight: `[outputs, inputs]`, float32, or bfloat16 as uint16.
        bias: `[outputs]` float32.
        dtype: None for the numbers as they are. `"bfloat16_pairs"`: likewise, of bfloat16, for inputs that are rounded
            to bfloat16 at each call; sums are float32. `"int8"`: levels of -127 to 127 and a scale for each output.
            `"int4"`: levels of -8 to 7, a factor of -15 to 15 for 16 inputs of an output, and a scale for each output,
            searched for the least error.
        importance: `[inputs]` float32, how much the error of an input's weights counts in that search, usually the
            mean square of the input; None for all alike.

    Raises:
        TypeError: the weight has another dtype.
        ValueError: a shape does not fit the weight's, or the dtype is none of these.
    """
    code = dtype_code(weight)
    if dtype not in (None, "int8", "int4", "bfloat16_pairs"):
        as_they_are = "None for the numbers as they are"
        msg = f"a weight is packed as 'int8', 'int4', 'bfloat16_pairs', or {as_they_are}, got {dtype!r}"
        raise ValueError(msg)
    weight = np.ascontiguousarray(weight)
    outputs, inputs = weight.shape
    if dtype == "bfloat16_pairs" and (weight.dtype != np.uint16 or inputs % 2):
        msg = f"pairs are of bfloat16 numbers as uint16, got {weight.dtype} and {inputs} inputs"
        raise ValueError(msg)
    if importance is not None and importance.shape != (inputs,):
        msg = f"importance must be an array of {inputs} numbers, one for each input, got {importance.shape}"
        raise ValueError(msg)
    padded = None
    if bias is not None:
        padded = np.zeros(-(-outputs // PANEL) * PANEL, np.float32)
        padded[:outputs] = bias
    named = dtype or _DTYPES[weight.dtype]
    packed = np.empty(packed_bytes(named, outputs, inputs), np.uint8)
    if dtype in (None, "bfloat16_pairs"):
        check(library.accel_lay_out(weight.ctypes.data, PACKED[named], outputs, inputs, packed.ctypes.data))
        return PackedLinear(packed, None, padded, inputs, outputs, named)
    scales = np.empty(-(-outputs // PANEL) * PANEL, np.float32)
    weighs = None if importance is None else np.ascontiguousarray(importance, np.float32)
    places = None if weighs is None else weighs.ctypes.data, packed.ctypes.data, scales.ctypes.data
    check(library.accel_pack(weight.ctypes.data, code, PACKED[named], outputs, inputs, *places))
    return PackedLinear(packed, scales, padded, inputs, outputs, named)
