"""One packed step: the lanes of a call laid end to end as a single sequence of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from langchain_accel.devices.base import IntArray


@dataclass(frozen=True, slots=True)
class Lane:
    """The real tokens of one row in a packed step.

    Attributes:
        row: row of the arena.
        start: column of the first token.
        length: real tokens; padding is not counted.
        offset: where the lane begins in the packed sequence.
    """

    row: int
    start: int
    length: int
    offset: int

    @property
    def end(self) -> int:
        """One past the last column written."""
        return self.start + self.length

    @property
    def tokens(self) -> slice:
        """The lane's real tokens in the packed sequence."""
        return slice(self.offset, self.offset + self.length)


@dataclass(slots=True)
class Step:
    """A call's lanes, packed as `T = batch * width` tokens.

    Attributes:
        tokens: `[1, T]` token ids, padding included.
        positions: `[1, T]` columns; those of padding are held inside the arena, because a learned position past the
            table would fail.
        last: `[batch]` index of each lane's last real token.
        rows: `[batch]` row per lane.
        columns: `[batch]` first column per lane.
        width: tokens per lane, padding included.
        lanes: the lanes themselves.
        table: `[batch, 4]` int32, the lanes' fields in their order.
        biases: attention biases already built in this step, shared by its layers.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    last: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    width: int
    lanes: tuple[Lane, ...]
    table: npt.NDArray[np.int32]
    biases: dict[tuple[object, ...], torch.Tensor] = field(default_factory=dict)

    @property
    def padded(self) -> bool:
        """Whether some tokens are padding."""
        return any(lane.length < self.width for lane in self.lanes)


def pack(
    tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray, max_len: int, device: torch.device
) -> Step:
    """Lay the lanes of a `[B, L]` call end to end.

    Args:
        tokens: `[B, L]` token ids.
        lengths: `[B]` real tokens per lane.
        starts: `[B]` first column per lane.
        rows: `[B]` row per lane.
        max_len: columns of a row.
        device: where the step's tensors go.
    """
    batch, width = tokens.shape
    positions = np.minimum(starts[:, None] + np.arange(width), max_len - 1)
    offsets = np.arange(batch) * width
    table = np.stack([rows, starts, lengths, offsets], axis=1).astype(np.int32)
    return Step(
        tokens=torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64).reshape(1, -1)).to(device),
        positions=torch.from_numpy(positions.reshape(1, -1)).to(device),
        last=torch.from_numpy(offsets + lengths - 1).to(device),
        rows=torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device),
        columns=torch.from_numpy(np.asarray(starts, dtype=np.int64)).to(device),
        width=width,
        lanes=tuple(Lane(*lane) for lane in table.tolist()),
        table=table,
    )
