"""A model as the kernels' arrays: in memory, or mapped from a file."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langchain_accel.devices.base import Logits
from langchain_accel.errors import ModelRejected

if TYPE_CHECKING:
    import langchain_accel_kernels as kernels

FILE = "model.packed.safetensors"
"""Name of the file in an exported folder."""

_FORMAT = "3"
_FILLING = "filling."
_LENGTH = struct.Struct("<Q")
_ALIGNED = 64  # bytes: where every array begins, so that no load of a register crosses a line of the cache
_DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype(np.uint8), "BF16": np.dtype(np.uint16), "F32": np.dtype(np.float32)}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Packed:
    """What of a model does not depend on rows and columns.

    Attributes:
        weights: `"exact"`, `"int8"` or `"int4"`, as asked for when it was packed.
        numbers: sizes and factors, as the kernels' `Numbers` names them.
        windows: for each layer, the columns that a token sees, itself included; 0 for all.
        ropes: for each layer, the name of its rotary positions; "" for none.
        rotary_factors: by that name, on cosines and sines.
        soft_cap: on scores, as the kernels' `Layer` names it.
        alibi: how linear biases for positions are rounded, see `column_bias`; "" for a model without.
        arrays: `embedding`, `norm.weight`, `frequencies.{name}` of rotary positions, `slopes` of linear biases,
            `expected` (logits of the model before it was rounded, for the self-check's prompt), and for each layer and
            the head `{index}.qkv.int8` or another dtype of a packed weight, `.scales`, `.bias` and so on.
    """

    weights: str
    numbers: dict[str, Any]
    windows: list[int]
    ropes: list[str]
    rotary_factors: dict[str, float]
    soft_cap: float
    alibi: str
    arrays: dict[str, NDArray[Any]]

    @property
    def bytes(self) -> int:
        """Size of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def open(self, rows: int, max_len: int, cache: str, threads: int) -> kernels.Model:
        """Return the kernels' model, with a KV cache.

        Args:
            rows: of the KV cache.
            max_len: columns of a row.
            cache: dtype of keys and values, `"float32"`, `"bfloat16"` or `"int8"`.
            threads: that share each step.
        """
        import langchain_accel_kernels as kernels

        numbers = kernels.Numbers(**self.numbers, rows=rows, max_len=max_len, cache=cache)
        places = np.arange(max_len, dtype=np.float32)[:, None]
        angles = {name: places * self.arrays[f"frequencies.{name}"] for name in self.rotary_factors}
        cosines, sines = (
            {name: function(angle) * np.float32(self.rotary_factors[name]) for name, angle in angles.items()}
            for function in (np.cos, np.sin)
        )
        attended, group = numbers.heads * numbers.width, 2 * numbers.kv_heads * numbers.width
        bias = None
        if self.alibi:
            columns = -(-max_len // kernels.COLUMNS) * kernels.COLUMNS
            bias = column_bias(self.arrays["slopes"], columns, self.alibi, numbers.scaling)
        layers = [
            kernels.Layer(
                qkv=self._linear(f"{index}.qkv", numbers.hidden, attended + group),
                out=self._linear(f"{index}.out", attended, numbers.hidden),
                gate_up=self._linear(f"{index}.gate_up", numbers.hidden, (1 + numbers.gated) * numbers.inner),
                down=self._linear(f"{index}.down", numbers.inner, numbers.hidden),
                norm=self._norm(f"{index}.norm"),
                inner_norm=self._norm(f"{index}.inner_norm"),
                query_norm=self._norm_if_any(f"{index}.query_norm"),
                key_norm=self._norm_if_any(f"{index}.key_norm"),
                after_attention=self._norm_if_any(f"{index}.after_attention"),
                after_mlp=self._norm_if_any(f"{index}.after_mlp"),
                cosines=cosines.get(rope),
                sines=sines.get(rope),
                window=window if window < max_len else 0,
                soft_cap=self.soft_cap,
                column_bias=bias,
            )
            for index, (window, rope) in enumerate(zip(self.windows, self.ropes, strict=True))
        ]
        ends = kernels.Ends(
            embedding=self.arrays["embedding"],
            norm=self._norm("norm"),
            head=self._linear("head", numbers.hidden, numbers.vocabulary),
            embedding_norm=self._norm_if_any("embedding_norm"),
        )
        return kernels.Model(numbers, layers, ends, threads)

    def _norm(self, name: str) -> kernels.Norm:
        import langchain_accel_kernels as kernels

        return kernels.Norm(self.arrays[f"{name}.weight"], self.arrays.get(f"{name}.bias"))

    def _norm_if_any(self, name: str) -> kernels.Norm | None:
        return self._norm(name) if f"{name}.weight" in self.arrays else None

    def _linear(self, name: str, inputs: int, outputs: int) -> kernels.PackedLinear:
        import langchain_accel_kernels as kernels

        dtype = next(dtype for dtype in kernels.PACKED if f"{name}.{dtype}" in self.arrays)
        scales, bias = (self.arrays.get(f"{name}.{part}") for part in ("scales", "bias"))
        return kernels.PackedLinear(self.arrays[f"{name}.{dtype}"], scales, bias, inputs, outputs, dtype)


def column_bias(slopes: Logits, columns: int, rounding: str, scaling: float) -> Logits:
    """Return what is added to the scores of each head's columns, `[heads, columns]` float32.

    The distance to the query's column is left out: what all columns share, softmax does not see.

    Args:
        slopes: `[heads]` float32.
        columns: of a row.
        rounding: `"float32"` for none; `"bfloat16"` of the biases, as BLOOM rounds them in that dtype; `"falcon"` of
            all numbers before the biases are scaled as scores are, as Falcon does in every dtype.
        scaling: factor on the scores.
    """
    places = np.arange(columns, dtype=np.float32)
    if rounding == "falcon":
        scaled: Logits = _rounded(_rounded(slopes)[:, None] * _rounded(places)) * np.float32(scaling)
        return scaled
    biases: Logits = slopes[:, None] * places
    return biases if rounding == "float32" else _rounded(biases)


def _rounded(numbers: Logits) -> Logits:
    """Round to bfloat16, to nearest even."""
    words = numbers.view(np.uint32)
    rounded: Logits = ((words + 0x7FFF + ((words >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded


def holds(folder: Path) -> bool:
    """Return whether a folder was exported: its weights are packed already."""
    return (folder / FILE).is_file()


def size(folder: Path) -> int:
    """Return the bytes of the weights of an exported folder."""
    return (folder / FILE).stat().st_size


def write(packed: Packed, folder: Path) -> None:
    """Write a safetensors file whose arrays can be used where they lie in it."""
    described = {field.name: getattr(packed, field.name) for field in fields(packed) if field.name != "arrays"}
    header: dict[str, Any] = {"__metadata__": {"format": _FORMAT, "model": json.dumps(described)}}
    pieces: list[Any] = []
    end = 0
    for name, array in packed.arrays.items():
        header[name] = _entry(_NAMES[array.dtype], array.shape, end, array.nbytes)
        end += array.nbytes
        filling = -end % _ALIGNED  # the format allows no holes
        header[f"{_FILLING}{name}"] = _entry("U8", (filling,), end, filling)
        end += filling
        pieces += [array.data, bytes(filling)]
    text = json.dumps(header).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % _ALIGNED)
    with (folder / FILE).open("wb") as file:
        file.write(_LENGTH.pack(len(text)) + text)
        file.writelines(pieces)


def _entry(dtype: str, shape: tuple[int, ...], first: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, first + size]}


def read(folder: Path) -> Packed:
    """Map a file that `write` wrote; nothing of it is read before it is used.

    Raises:
        ModelRejected: the file is damaged, or of another version.
    """
    path = folder / FILE
    try:
        mapped = np.memmap(path, np.uint8, "r")
        (length,) = _LENGTH.unpack(mapped[: _LENGTH.size].tobytes())
        header = json.loads(mapped[_LENGTH.size : _LENGTH.size + length].tobytes())
        about = header.pop("__metadata__")
        if about["format"] != _FORMAT:
            msg = f"it has format {about['format']}, and this version reads format {_FORMAT}"
            raise ValueError(msg)  # noqa: TRY301
        data = np.asarray(mapped)[_LENGTH.size + length :]
        arrays = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            if last > len(data):
                msg = f"it ends before {name}"
                raise ValueError(msg)  # noqa: TRY301
            if not name.startswith(_FILLING):
                arrays[name] = data[first:last].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return Packed(**json.loads(about["model"]), arrays=arrays)
    except (KeyError, TypeError, ValueError, struct.error) as error:
        msg = f"{path} cannot be used ({error}); export the model again"
        raise ModelRejected(msg) from error
