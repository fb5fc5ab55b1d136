"""Products and attention one at a time, for a model whose steps another library runs."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langchain_accel_kernels import _library
from langchain_accel_kernels._packing import PackedLinear, check, dtype_code, library

LANES = 16
"""Widths of heads are multiples of it, and so are inputs of products."""

COLUMNS = 64
"""Columns of a cache are a multiple of it."""

_DTYPES = {"float32": np.float32, "bfloat16": np.uint16}


@dataclass(frozen=True)
class Cache:
    """Keys and values of one layer, of all rows; float32, or bfloat16 as uint16.

    Attributes:
        keys: `[rows, kv_heads, columns / 16, width, 16]`: 16 neighbouring columns lie together.
        values: `[rows, kv_heads, columns, width]`.

    Raises:
        ValueError: sizes, dtypes or strides are not what the kernels take.
    """

    keys: NDArray[Any]
    values: NDArray[Any]

    def __post_init__(self) -> None:
        """Check both arrays."""
        rows, kv_heads, columns, width = self.values.shape
        alike = self.keys.dtype == self.values.dtype and self.keys.flags.c_contiguous and self.values.flags.c_contiguous
        wanted = (rows, kv_heads, columns // LANES, width, LANES)
        if not alike or self.keys.shape != wanted or columns % COLUMNS or width % LANES:
            msg = (
                f"values {self.values.shape} want contiguous keys {wanted} of their dtype, a multiple of {COLUMNS} "
                f"columns and of {LANES} dimensions; got keys {self.keys.shape} of {self.keys.dtype}"
            )
            raise ValueError(msg)

    @cached_property
    def structure(self) -> _library.Cache:
        """What the library takes; valid as long as this object."""
        return _library.Cache(self.keys.ctypes.data, self.values.ctypes.data, None, None, self.values.shape[2])

    @classmethod
    def empty(cls, rows: int, kv_heads: int, columns: int, width: int, dtype: str = "float32") -> Cache:
        """Return a cache of zeros, which takes no memory before it is written.

        Args:
            rows: of the cache.
            kv_heads: heads of keys and values.
            columns: of a row, rounded up to a multiple of 64.
            width: of a head, rounded up to a multiple of 16.
            dtype: `"float32"` or `"bfloat16"`.
        """
        columns, width = -(-columns // COLUMNS) * COLUMNS, -(-width // LANES) * LANES
        number = _DTYPES[dtype]
        keys = np.zeros((rows, kv_heads, columns // LANES, width, LANES), number)
        return cls(keys, np.zeros((rows, kv_heads, columns, width), number))

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy columns `0...length - 1` of row `source` to row `target`, and no column behind them."""
        blocks, rest = divmod(length, LANES)
        self.keys[target, :, :blocks] = self.keys[source, :, :blocks]
        if rest:
            self.keys[target, :, blocks, :, :rest] = self.keys[source, :, blocks, :, :rest]
        self.values[target, :, :length] = self.values[source, :, :length]


class Parts:
    """Threads and buffers that products and attention share. One thread at a time may call it.

    Args:
        threads: that share each call, the caller's among them; they sleep between two.

    Raises:
        RuntimeError: the processor has no instructions that fit.
    """

    def __init__(self, threads: int = 1) -> None:
        self._parts = None
        self._parts = library.accel_create_parts(threads)
        if not self._parts:
            raise RuntimeError(library.accel_error().decode())

    def linear(self, layer: PackedLinear, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `tokens @ weight.T + bias`, `[n, outputs]` for `[n, inputs]`; `inputs` divides by 16.

        A token's numbers are the same, bit for bit, whatever shares the call, and for any number of threads.

        Raises:
            ValueError: the shapes do not fit.
            RuntimeError: the parts are closed.
        """
        self._check_open()
        tokens = np.ascontiguousarray(tokens, np.float32)
        if tokens.shape[1] != layer.inputs or layer.inputs % LANES:
            msg = f"tokens of width {tokens.shape[1]} for a layer of {layer.inputs} inputs, which must divide by 16"
            raise ValueError(msg)
        out = np.empty((len(tokens), layer.outputs), np.float32)
        given, found = tokens.ctypes.data, out.ctypes.data
        check(library.accel_linear(self._parts, byref(layer.structure), given, len(tokens), found))
        return out

    def attend(
        self,
        cache: Cache,
        lanes: NDArray[np.int32],
        qkv: NDArray[np.float32],
        *,
        scaling: float,
        window: int = 0,
        soft_cap: float = 0.0,
        column_bias: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Write the lanes' keys and values to the cache, then let each token attend to its row, up to its own column.

        A token's numbers are the same, bit for bit, whatever shares the call, and for any number of threads.

        Args:
            cache: of the layer; changed in place.
            lanes: `[m, 4]`: tokens of a row that follow each other. Row, first column, count, and the first one's
                place among the tokens; what is in no lane is padding.
            qkv: `[n, heads + 2 * kv_heads, width]`, n tokens: their queries, keys and values.
            scaling: factor on the scores.
            window: columns that a token sees, itself included; 0 for all.
            soft_cap: scores become `soft_cap * tanh(scores / soft_cap)`; 0 for no cap.
            column_bias: `[heads, columns]`, added to the scores of each column (ALiBi); None for nothing.

        Returns:
            `[n, heads, width]`; zeros at padding.

        Raises:
            ValueError: the shapes do not fit.
            RuntimeError: a lane is out of range, or the parts are closed.
        """
        self._check_open()
        rows, kv_heads, columns, width = cache.values.shape
        heads = qkv.shape[1] - 2 * kv_heads
        qkv, lanes = np.ascontiguousarray(qkv, np.float32), np.ascontiguousarray(lanes, np.int32)
        if heads < 1 or heads % kv_heads or qkv.shape[2] != width or lanes.shape[1:] != (4,):
            msg = f"tokens {qkv.shape} and lanes {lanes.shape} for a cache of {kv_heads} heads of {width}"
            raise ValueError(msg)
        if column_bias is not None and (
            column_bias.shape != (heads, columns)
            or column_bias.dtype != np.float32
            or not column_bias.flags.c_contiguous
        ):
            msg = f"column_bias must be a contiguous array {(heads, columns)} of float32, got {column_bias.shape}"
            raise ValueError(msg)
        shape = _library.Shape(
            heads=heads,
            kv_heads=kv_heads,
            width=width,
            rows=rows,
            cache_dtype=dtype_code(cache.values),
            scaling=scaling,
        )
        layer = _library.Layer(
            window=window, soft_cap=soft_cap, column_bias=None if column_bias is None else column_bias.ctypes.data
        )
        out = np.zeros((len(qkv), heads, width), np.float32)
        numbers = len(lanes), lanes.ctypes.data, len(qkv), qkv.ctypes.data, out.ctypes.data
        check(library.accel_attend(self._parts, byref(shape), byref(layer), byref(cache.structure), *numbers))
        return out

    def close(self) -> None:
        """Release threads and buffers. Idempotent."""
        parts, self._parts = self._parts, None
        if parts:
            library.accel_destroy_parts(parts)

    def _check_open(self) -> None:
        if self._parts is None:
            msg = "the parts are closed"
            raise RuntimeError(msg)

    def __del__(self) -> None:
        self.close()


def linear(layer: PackedLinear, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what `Parts.linear` returns, in one thread."""
    return Parts().linear(layer, tokens)
