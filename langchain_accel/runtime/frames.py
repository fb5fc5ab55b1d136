"""The frames that an engine and its ranks exchange: a fixed binary form, numbers as raw arrays, nothing to unpickle.

    header   "LA", version, kind, arrays, 3 zero bytes, call (uint32), bytes of text (uint32), bytes of body (uint64)
    body     per array: dtype code, dimensions, 6 zero bytes, each dimension as uint64, the values, zeros up to 8 bytes
             then the text, in UTF-8

All numbers are little-endian. Text is JSON in a load call, its answer and a failure; nothing else has any.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

MAGIC, VERSION = b"LA", 1
MAX_ARRAYS, MAX_DIMENSIONS = 8, 4
MAX_BODY = 64 * 2**20
"""Bytes of a frame's body: a prefill of a million tokens is 8 MiB. Logits travel in shared memory."""

_HEADER = struct.Struct("<2sBBB3xIIQ")
_ARRAY = struct.Struct("<BB6x")
_SHAPES = [struct.Struct(f"<BB6x{dimensions}Q") for dimensions in range(MAX_DIMENSIONS + 1)]
_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<i8"), 2: np.dtype("<f4")}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class BadFrame(ValueError):
    """Bytes that are no frame, or a frame past the limits: the two ends no longer understand each other."""


class Kind(IntEnum):
    """What a frame asks for or answers."""

    MEET = 1  # -> rank 0: choose where the ranks meet; text of the answer: its address
    LOAD = 2  # -> every rank; text: module, plan, options and rank; text of the answer: the spec
    PREFILL = 3
    DECODE = 4
    VERIFY = 5
    COPY = 6
    FORGET = 7
    CLOSE = 8
    SYNC = 9  # -> a rank that may have failed as well: answered after every call before it
    DONE = 32  # <- array: the shape of the logits in shared memory, where there are any
    FAILED = 33  # <- text: class and message of the error
    PROGRESS = 34  # <- array: done and total; text: the stage


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. `call` numbers the calls of an engine; an answer carries its call's number."""

    kind: Kind
    call: int
    arrays: tuple[npt.NDArray[Any], ...] = ()
    text: str = ""


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame.

    Raises:
        BadFrame: an array's dtype has no code, or a limit is exceeded.
    """
    text = frame.text.encode()
    parts: list[bytes] = []
    for array in frame.arrays:
        code = _CODES.get(array.dtype)
        if code is None or array.ndim > MAX_DIMENSIONS or len(frame.arrays) > MAX_ARRAYS:
            msg = (
                f"{len(frame.arrays)} arrays, one of dtype {array.dtype} with {array.ndim} dimensions: a frame takes "
                f"{MAX_ARRAYS} arrays of int64 or float32 with at most {MAX_DIMENSIONS} dimensions"
            )
            raise BadFrame(msg)
        values = np.ascontiguousarray(array, _DTYPES[code]).tobytes()
        parts += [_SHAPES[array.ndim].pack(code, array.ndim, *array.shape), values, bytes(-len(values) % 8)]
    size = sum(map(len, parts)) + len(text)
    if size > MAX_BODY:
        msg = f"a frame of {size} bytes; the limit is {MAX_BODY}"
        raise BadFrame(msg)
    header = _HEADER.pack(MAGIC, VERSION, frame.kind, len(frame.arrays), frame.call, len(text), size)
    return b"".join([header, *parts, text])


class Decoder:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    @property
    def partial(self) -> bool:
        """Whether the stream stands in the middle of a frame."""
        return bool(self._bytes)

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes of the stream and return the frames they complete, in order.

        Raises:
            BadFrame: the bytes are no frame. The stream cannot be read any further.
        """
        self._bytes += data
        frames: list[Frame] = []
        while len(self._bytes) >= _HEADER.size:
            size = _HEADER.size + _body_size(self._bytes)
            if len(self._bytes) < size:
                break
            frames.append(_decode(self._bytes[:size]))
            del self._bytes[:size]
        return frames


def _body_size(header: bytearray) -> int:
    """Return the bytes of body that a header announces; refuse them before they are waited for."""
    magic, version, kind, arrays, _, text, size = _HEADER.unpack_from(header)
    if magic != MAGIC or version != VERSION:
        msg = f"a frame begins with {MAGIC!r} and version {VERSION}, got {magic!r} and {version}"
        raise BadFrame(msg)
    if kind not in _KINDS or arrays > MAX_ARRAYS or size > MAX_BODY or text > size:
        msg = f"a header of kind {kind} with {arrays} arrays, {text} bytes of text and {size} bytes is none of ours"
        raise BadFrame(msg)
    return int(size)


def _decode(data: bytearray) -> Frame:
    """Read a whole frame. Its arrays are writable views of `data`."""
    _, _, kind, count, call, text_size, _ = _HEADER.unpack_from(data)
    offset, end = _HEADER.size, len(data) - text_size
    arrays = []
    for _ in range(count):
        array, offset = _array(data, offset, end)
        arrays.append(array)
    if offset != end:
        msg = f"the arrays of a frame end at byte {offset}, its text begins at {end}"
        raise BadFrame(msg)
    try:
        return Frame(Kind(kind), call, tuple(arrays), data[end:].decode())
    except UnicodeDecodeError as error:
        msg = f"the text of a frame is no UTF-8: {error}"
        raise BadFrame(msg) from error


def _array(data: bytearray, offset: int, end: int) -> tuple[npt.NDArray[Any], int]:
    """Read the array at `offset`, which must end at `end` or before; return it and where the next one begins."""
    begin = offset + _ARRAY.size
    code, dimensions = _ARRAY.unpack_from(data, offset) if begin <= end else (0, 0)
    if code not in _DTYPES or dimensions > MAX_DIMENSIONS or begin + 8 * dimensions > end:
        msg = f"no array at byte {offset} of a frame: dtype code {code}, {dimensions} dimensions, {end} bytes"
        raise BadFrame(msg)
    _, _, *shape = _SHAPES[dimensions].unpack_from(data, offset)
    begin += 8 * dimensions
    dtype, count = _DTYPES[code], prod(shape)
    size = count * dtype.itemsize
    if begin + size + -size % 8 > end:
        msg = f"an array of shape {shape} needs {size} bytes, the frame has {end - begin}"
        raise BadFrame(msg)
    values = np.frombuffer(data, dtype, count, begin) if count else np.zeros(0, dtype)
    try:
        return values.reshape(shape), begin + size + -size % 8
    except ValueError as error:  # an empty array may have any dimensions; some are more than numpy can count
        msg = f"no array has the shape {shape}: {error}"
        raise BadFrame(msg) from error


_KINDS = frozenset(Kind)
