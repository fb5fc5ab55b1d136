"""Whole steps of a decoder like Llama, or like GPT-NeoX."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langchain_accel_kernels import _library
from langchain_accel_kernels._packing import PackedLinear, check, dtype_code, library
from langchain_accel_kernels._parts import COLUMNS

_LANES = 16
_CACHES = {"float32": 0, "bfloat16": 1, "int8": 2}
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}


@dataclass(frozen=True)
class Numbers:
    """Sizes and factors of a model.

    Attributes:
        hidden: width of the residual stream, a multiple of 16.
        inner: width of what goes down, a multiple of 16.
        heads: of the queries.
        kv_heads: of keys and values; divides `heads`.
        width: of a head, a multiple of 16.
        rotary: dimensions of a head that are rotated, an even number; 0 for none.
        vocabulary: rows of the embedding.
        rows: of the KV cache.
        max_len: columns of a row.
        epsilon: of the norms.
        scaling: factor on the attention's scores.
        cache: dtype of keys and values: `"float32"`, `"bfloat16"`, or `"int8"`: a scale for a token's keys of a head,
            and one for its values.
        activation: `"silu"`, `"gelu"` or `"gelu_tanh"`.
        gated: whether what it is applied to, the gate, has another half that the result multiplies.
        centred: whether norms take the mean away before they divide (LayerNorm).
        parallel: whether both halves of a layer read what came into it; else the second one reads what the first made.
        embedding_factor: on embedded tokens.
        residual_factor: on what a layer's halves add to the residual stream.
        logits_factor: on the logits.
        logits_cap: logits become cap * tanh(logits / cap); 0 for no cap.
    """

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    width: int
    rotary: int
    vocabulary: int
    rows: int
    max_len: int
    epsilon: float
    scaling: float
    cache: str = "float32"
    activation: str = "silu"
    gated: bool = True
    centred: bool = False
    parallel: bool = False
    embedding_factor: float = 1.0
    residual_factor: float = 1.0
    logits_factor: float = 1.0
    logits_cap: float = 0.0


@dataclass(frozen=True)
class Norm:
    """Weights of a norm, `[hidden]`, or `[width]` for those of heads, float32.

    Attributes:
        weight: factors.
        bias: added; None for nothing.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Layer:
    """Weights of one layer.

    Attributes:
        qkv: queries of all heads, keys of all key/value heads, values: one below the other.
        out: the attention's output.
        gate_up: the gate above what it multiplies; what the activation takes, where there is no gate.
        down: back to the residual stream.
        norm: before the attention.
        inner_norm: before `gate_up`.
        query_norm: of each head, or None.
        key_norm: likewise.
        after_attention: of what the attention's half of the layer makes, before it is added, or None.
        after_mlp: of the other half, likewise.
        cosines: `[max_len, rotary / 2]` float32; None for no rotation.
        sines: likewise.
        window: columns that a token sees, itself included; 0 for all.
        soft_cap: scores become cap * tanh(scores / cap); 0 for no cap.
        column_bias: `[heads, columns]` float32, added to scores (ALiBi); columns are max_len in whole blocks of
            `COLUMNS`. None for none.
    """

    qkv: PackedLinear
    out: PackedLinear
    gate_up: PackedLinear
    down: PackedLinear
    norm: Norm
    inner_norm: Norm
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    after_attention: Norm | None = None
    after_mlp: Norm | None = None
    cosines: NDArray[np.float32] | None = None
    sines: NDArray[np.float32] | None = None
    window: int = 0
    soft_cap: float = 0.0
    column_bias: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Ends:
    """What comes before the first layer and after the last.

    Attributes:
        embedding: `[vocabulary, hidden]`, float32, or bfloat16 as uint16.
        norm: after the last layer.
        head: to the logits.
        embedding_norm: of embedded tokens, or None.
    """

    embedding: NDArray[Any]
    norm: Norm
    head: PackedLinear
    embedding_norm: Norm | None = None


class Model:
    """A loaded model with the KV cache of all its rows. One thread at a time may call it.

    Args:
        numbers: sizes and factors.
        layers: in order.
        ends: embedding, last norm, positions and head.
        threads: that share each step, the caller's among them.

    Raises:
        ValueError: a size is not one that the kernels take, or an array does not have the shape that they say.
        RuntimeError: the processor has no instructions that fit, or there is not enough memory.
    """

    def __init__(self, numbers: Numbers, layers: Sequence[Layer], ends: Ends, threads: int = 1) -> None:
        self._model = None
        _check_sizes(numbers, len(layers))
        self.numbers = numbers
        self._kept = (list(layers), ends)
        fields = asdict(numbers)
        fields["cache_dtype"] = _CACHES[fields.pop("cache")]
        fields["activation"] = _ACTIVATIONS[fields["activation"]]
        shape = _library.Shape(layers=len(layers), embedding_dtype=dtype_code(ends.embedding), **fields)
        first = _library.Ends(
            _of_shape("embedding", ends.embedding, (numbers.vocabulary, numbers.hidden)),
            _norm("embedding_norm", ends.embedding_norm, numbers.hidden),
            _norm("norm", ends.norm, numbers.hidden),
            _of_width("head", ends.head, numbers.hidden, numbers.vocabulary),
        )
        structures = [_structure(numbers, layer) for layer in layers]
        self._model = library.accel_create(byref(shape), threads)
        if not self._model:
            raise RuntimeError(library.accel_error().decode())
        check(library.accel_set_ends(self._model, byref(first)))
        for index, structure in enumerate(structures):
            check(library.accel_set_layer(self._model, index, byref(structure)))

    def step(
        self, tokens: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any], wanted: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Write tokens to their rows and columns, and return the logits of some.

        Args:
            tokens: `[n]` ids. Tokens of a row stand together, in the order of their columns.
            rows: `[n]` row of each token.
            columns: `[n]` column of each token; all columns before it are attended.
            wanted: `[m]` places in `tokens` whose logits are returned.

        Returns:
            `[m, vocabulary]` float32.

        Raises:
            RuntimeError: a token, row or column is out of range, or the model is closed.
        """
        self._check_open()
        given = [np.ascontiguousarray(numbers, np.int32) for numbers in (tokens, rows, columns, wanted)]
        logits = np.empty((len(given[3]), self.numbers.vocabulary), np.float32)
        places = [array.ctypes.data for array in given]
        check(library.accel_step(self._model, len(given[0]), *places[:3], len(logits), places[3], logits.ctypes.data))
        return logits

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy columns `0...length - 1` of row `source` to row `target`.

        Raises:
            RuntimeError: a row or the length is out of range, or the model is closed.
        """
        self._check_open()
        check(library.accel_copy_row(self._model, source, target, length))

    def close(self) -> None:
        """Release the KV cache and the threads. Idempotent."""
        model, self._model = self._model, None
        if model:
            library.accel_destroy(model)

    def _check_open(self) -> None:
        if self._model is None:
            msg = "the model is closed"
            raise RuntimeError(msg)

    def __del__(self) -> None:
        self.close()


def _check_sizes(numbers: Numbers, layers: int) -> None:
    if not layers:
        msg = "a model must have a layer"
        raise ValueError(msg)
    for name in ("hidden", "inner", "width"):
        if getattr(numbers, name) % _LANES or getattr(numbers, name) < _LANES:
            msg = f"{name} must be a multiple of {_LANES}, got {getattr(numbers, name)}"
            raise ValueError(msg)
    if numbers.heads % numbers.kv_heads or not 0 <= numbers.rotary <= numbers.width or numbers.rotary % 2:
        msg = f"heads, kv_heads and rotary do not go together: {numbers}"
        raise ValueError(msg)


def _structure(numbers: Numbers, layer: Layer) -> _library.Layer:
    attended = numbers.heads * numbers.width
    hidden, inner, width = numbers.hidden, numbers.inner, numbers.width
    columns, angles = -(-numbers.max_len // COLUMNS) * COLUMNS, (numbers.max_len, numbers.rotary // 2)
    return _library.Layer(
        _of_width("qkv", layer.qkv, numbers.hidden, attended + 2 * numbers.kv_heads * numbers.width),
        _of_width("out", layer.out, attended, numbers.hidden),
        _of_width("gate_up", layer.gate_up, numbers.hidden, (1 + numbers.gated) * inner),
        _of_width("down", layer.down, inner, numbers.hidden),
        _norm("norm", layer.norm, hidden),
        _norm("inner_norm", layer.inner_norm, hidden),
        _norm("query_norm", layer.query_norm, width),
        _norm("key_norm", layer.key_norm, width),
        _norm("after_attention", layer.after_attention, hidden),
        _norm("after_mlp", layer.after_mlp, hidden),
        _address("cosines", layer.cosines, angles),
        _address("sines", layer.sines, angles),
        layer.window,
        layer.soft_cap,
        _address("column_bias", layer.column_bias, (numbers.heads, columns)),
    )


def _address(name: str, array: NDArray[np.float32] | None, shape: tuple[int, ...]) -> int | None:
    return None if array is None else _of_shape(name, array, shape)


def _norm(name: str, norm: Norm | None, size: int) -> _library.Norm:
    if norm is None:
        return _library.Norm()
    return _library.Norm(_of_shape(name, norm.weight, (size,)), _address(f"bias of {name}", norm.bias, (size,)))


def _of_shape(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> int:
    """Return the address of an array that has the shape, and is float32 unless it is the embedding."""
    if array.shape != shape or not array.flags.c_contiguous or (name != "embedding" and array.dtype != np.float32):
        msg = f"{name} must be a contiguous array {shape}, of float32, got {array.shape} of {array.dtype}"
        raise ValueError(msg)
    return int(array.ctypes.data)


def _of_width(name: str, layer: PackedLinear, inputs: int, outputs: int) -> _library.Linear:
    if (layer.inputs, layer.outputs) != (inputs, outputs):
        msg = f"{name} must have {inputs} inputs and {outputs} outputs, got {layer.inputs} and {layer.outputs}"
        raise ValueError(msg)
    return layer.structure
