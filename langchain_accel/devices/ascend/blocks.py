"""Rows as strips of KV-cache blocks: pure arithmetic, nothing is ever allocated or given back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from langchain_accel.devices.base import IntArray

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Strips:
    """A pool of blocks in which row `r` owns blocks `r * blocks ... (r + 1) * blocks - 1` for ever.

    A paged cache hands blocks out and takes them back; one that is not given back is lost. Strips cannot leak: which
    block holds a column follows from the row alone. One more block, at the end, takes what nobody will read.

    Attributes:
        rows: rows of the arena.
        blocks: blocks of a row.
        block_size: columns of a block.
    """

    rows: int
    blocks: int
    block_size: int

    @classmethod
    def covering(cls, rows: int, max_len: int, block_size: int) -> Strips:
        """Return the smallest strips that hold `max_len` columns each."""
        return cls(rows, -(-max_len // block_size), block_size)

    @property
    def columns(self) -> int:
        """Columns of a strip; as many as `max_len`, or up to a block more."""
        return self.blocks * self.block_size

    @property
    def pool(self) -> int:
        """Blocks of the whole cache."""
        return self.rows * self.blocks + 1

    def tables(self, rows: IntArray) -> Int32Array:
        """Return `[B, blocks]` block tables."""
        return (rows[:, None] * self.blocks + np.arange(self.blocks)).astype(np.int32)

    def slots(self, rows: IntArray, columns: IntArray) -> Int32Array:
        """Return the slot of each column of each row, both of any one shape; past a strip's end, one of nobody."""
        within = rows * self.columns + columns
        return np.where(columns < self.columns, within, self.rows * self.columns).astype(np.int32)

    def holding(self, row: int, length: int) -> Int32Array:
        """Return the blocks that hold the first `length` columns of a row."""
        return (row * self.blocks + np.arange(-(-length // self.block_size))).astype(np.int32)

    def causal_mask(self, columns: IntArray) -> npt.NDArray[np.float32]:
        """Return `[T, columns of a strip]`: what to add to the scores of tokens at these columns."""
        mask: npt.NDArray[np.float32] = (np.arange(self.columns) > columns[:, None]) * np.float32(-10000.0)
        return mask
