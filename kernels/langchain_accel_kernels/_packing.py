"""Weights in 8-bit integers, and one product with them."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langchain_accel_kernels import _library

library = _library.load()

PANEL = 32
"""Outputs of a weight that lie together; scales and biases are padded to a multiple of it."""

_DTYPES = {np.dtype(np.float32): 0, np.dtype(np.uint16): 1}


@dataclass(frozen=True)
class PackedLinear:
    """A linear layer with 8-bit weights and a scale for each output.

    Attributes:
        weight: uint8, `[ceil(outputs / 32) * 32 * ceil(inputs / 4) * 4]`, laid out for the kernels.
        scales: float32, `[ceil(outputs / 32) * 32]`.
        bias: float32 like the scales, or None.
        inputs: width of the input.
        outputs: width of the output.
    """

    weight: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    inputs: int
    outputs: int

    @property
    def structure(self) -> _library.Linear:
        """What the library takes; valid as long as this object."""
        bias = None if self.bias is None else self.bias.ctypes.data
        return _library.Linear(self.weight.ctypes.data, self.scales.ctypes.data, bias, self.inputs, self.outputs)


def instructions() -> str | None:
    """Return the instruction set in use, `"avx512vnni"` or `"avx2"`; None where the processor has neither."""
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
    return _DTYPES[numbers.dtype]


def pack(weight: NDArray[Any], bias: NDArray[np.float32] | None = None) -> PackedLinear:
    """Round a weight to 8 bits, a scale per output, and lay it out for the kernels.

    Args:
        weight: `[outputs, inputs]`, float32, or bfloat16 as uint16.
        bias: `[outputs]` float32.

    Raises:
        TypeError: the weight has another dtype.
    """
    code = dtype_code(weight)
    weight = np.ascontiguousarray(weight)
    outputs, inputs = weight.shape
    packed = np.empty(library.accel_packed_bytes(outputs, inputs), np.uint8)
    scales = np.empty(-(-outputs // PANEL) * PANEL, np.float32)
    check(library.accel_pack(weight.ctypes.data, code, outputs, inputs, packed.ctypes.data, scales.ctypes.data))
    padded = None
    if bias is not None:
        padded = np.zeros_like(scales)
        padded[:outputs] = bias
    return PackedLinear(packed, scales, padded, inputs, outputs)


def linear(layer: PackedLinear, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `tokens @ weight.T + bias`, `[n, outputs]` for `[n, inputs]`, in one thread; `inputs` divides by 16.

    Raises:
        ValueError: the shapes do not fit.
    """
    tokens = np.ascontiguousarray(tokens, np.float32)
    if tokens.shape[1] != layer.inputs or layer.inputs % 16:
        msg = f"tokens of width {tokens.shape[1]} for a layer of {layer.inputs} inputs, which must divide by 16"
        raise ValueError(msg)
    out = np.empty((len(tokens), layer.outputs), np.float32)
    check(library.accel_linear(byref(layer.structure), tokens.ctypes.data, len(tokens), out.ctypes.data))
    return out
