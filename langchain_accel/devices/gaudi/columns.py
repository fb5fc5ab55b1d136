"""Where each row's tokens stand in an arena whose rows are all written at one shared column. Pure bookkeeping."""

from __future__ import annotations

import numpy as np

from langchain_accel.devices.base import IntArray


class Columns:
    """Each row holds adjacent columns. Rows that go on decoding end at the same column, where the next token goes.

    A row that is left out of a step falls behind, and the shared column runs into the arena's end: both are mended by
    shifting all rows, `align`.

    Attributes:
        first: `[rows]` column of each row's token 0.
        held: `[rows]` tokens that each row holds.
        shifts: how often `align` had to shift.
    """

    def __init__(self, rows: int, max_len: int) -> None:
        self.max_len = max_len
        self.first: IntArray = np.zeros(rows, np.int64)
        self.held: IntArray = np.zeros(rows, np.int64)
        self.shifts = 0

    def seat(self, rows: IntArray, lengths: IntArray) -> int:
        """Let rows hold new prompts, and return one past their last column.

        That is where the other rows end, or further right where a prompt is longer than that.

        Args:
            rows: `[B]` rows.
            lengths: `[B]` tokens of their prompts.
        """
        self.held[rows] = 0
        ends = (self.first + self.held)[self.held > 0]
        end = max(int(ends.max(initial=0)), int(lengths.max()))
        self.first[rows], self.held[rows] = end - lengths, lengths
        return end

    def align(self, positions: IntArray) -> IntArray | None:
        """Prepare a decode at these positions; return where all columns must be taken from, if rows must be shifted.

        Args:
            positions: `[rows]` tokens of each row that the next one sees; what a row held beyond is dropped.

        Returns:
            `[rows, columns]` column of the row that each column is taken from; None where all is well as it is.
        """
        ends = (self.first + positions)[positions > 0]
        end = int(ends[0]) if len(ends) else 0
        if (ends == end).all() and end < self.max_len:
            self.first[positions == 0] = end
            return None
        self.shifts += 1
        first = positions.max() - positions
        moved: IntArray = np.arange(self.max_len) + (self.first - first)[:, None]
        self.first = first
        return moved.clip(0, self.max_len - 1)

    def advance(self, positions: IntArray) -> tuple[IntArray, IntArray]:
        """Write a token to every row; rows are aligned.

        Returns:
            `[rows, columns]` mask of what each row attends, and, 0-d, one past the column that is written.
        """
        end = self.first[0] + positions[0] + 1
        self.held = positions + 1
        columns = np.arange(self.max_len)
        return ((columns >= self.first[:, None]) & (columns < end)).astype(np.int64), np.array(end)

    def forget(self, row: int) -> None:
        """Drop what a row holds."""
        self.held[row] = 0
