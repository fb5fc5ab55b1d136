"""Runs lanes on a device in declared shapes only. Padding lives here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from langchain_accel.devices.base import Device, IntArray, Logits, Progress, silent
from langchain_accel.errors import UndeclaredShape
from langchain_accel.runtime.shapes import Shape, declared

Tails = Callable[[], Iterable[tuple[int, int]]]
"""Gives rows with the first column that nobody will read, in order of preference for padding."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Tokens to write into `row` from column `start` on."""

    row: int
    tokens: IntArray
    start: int


@dataclass(slots=True)
class Work:
    """What the device was given: steps, tokens that were asked for, and tokens with all padding."""

    prefills: int = 0
    decodes: int = 0
    verifies: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0


class Runner:
    """Pads lanes to a declared shape and runs them; after `warmup` an undeclared shape is an error.

    Attributes:
        work: counters since warm-up.
        undeclared: shapes refused since warm-up; anything but 0 is a bug.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.spec = device.spec
        self.work = Work()
        self.undeclared = 0
        self._warm: set[Shape] = set()
        self._frozen = False

    @property
    def shapes(self) -> int:
        """Number of distinct shapes the device has seen."""
        return len(self._warm)

    def warmup(self, progress: Progress = silent) -> None:
        """Run every declared shape once, forget what that wrote, and freeze.

        A shape with an attended length runs on rows that are filled as far, as in serving.
        """
        shapes = declared(self.spec)
        filled = 0
        for done, (start, shape) in enumerate(shapes):
            progress("warming up shapes", done, len(shapes))
            filled = self._fill(filled, start)
            size = min(shape.length, shape.attended - start) if shape.attended else shape.length
            self._run(shape, [Lane(row, np.zeros(size, np.int64), start) for row in range(shape.batch)])
        for row in range(self.spec.rows):
            self.device.forget(row)
        self._frozen, self.work = True, Work()
        progress("warming up shapes", len(shapes), len(shapes))

    def prefill(self, lanes: Sequence[Lane], batch: int, length: int, tails: Tails) -> Logits:
        """Prefill lanes in the declared shape `(batch, length)`; `[len(lanes), vocab]` logits of their last tokens."""
        padded = self._padded(lanes, batch, tails)
        attended = self.spec.attended(max(lane.start + len(lane.tokens) for lane in padded))
        self.work.prefills += 1
        self.work.real_tokens += sum(len(lane.tokens) for lane in lanes)
        return self._run(Shape("prefill", batch, length, attended), padded)[: len(lanes)]

    def decode(self, lanes: Sequence[Lane], batch: int, tails: Tails) -> Logits:
        """Decode one token a lane in the declared batch; `[len(lanes), vocab]` logits."""
        padded = self._padded(lanes, batch, tails)
        attended = self.spec.attended(max(lane.start for lane in padded) + 1)
        self.work.decodes += 1
        self.work.real_tokens += len(lanes)
        return self._run(Shape("decode", batch, 1, attended), padded)[: len(lanes)]

    def verify(self, lanes: Sequence[Lane], batch: int, length: int, tails: Tails) -> Logits:
        """Write every lane's tokens in the declared shape `(batch, length)`; `[len(lanes), length, vocab]` logits."""
        padded = self._padded(lanes, batch, tails)
        attended = self.spec.attended(max(lane.start + len(lane.tokens) for lane in padded))
        self.work.verifies += 1
        self.work.real_tokens += sum(len(lane.tokens) for lane in lanes)
        return self._run(Shape("verify", batch, length, attended), padded)[: len(lanes)]

    def _padded(self, lanes: Sequence[Lane], batch: int, tails: Tails) -> Sequence[Lane]:
        """Fill the batch up with one-token lanes on other rows, at their tails (the tail rule)."""
        missing = batch - len(lanes)
        if missing == 0:
            return lanes
        used = {lane.row for lane in lanes}
        spare = [Lane(row, _PAD, tail) for row, tail in tails() if row not in used]
        assert len(spare) >= missing, "a declared batch never exceeds the rows of the arena"
        return [*lanes, *spare[:missing]]

    def _run(self, shape: Shape, lanes: Sequence[Lane]) -> Logits:
        if shape not in self._warm:
            self._declare(shape)
        self.work.padded_tokens += shape.batch * shape.length
        rows = np.array([lane.row for lane in lanes], np.int64)
        starts = np.array([lane.start for lane in lanes], np.int64)
        if shape.kind == "decode":
            return self.device.decode(np.concatenate([lane.tokens for lane in lanes]), starts, rows)
        tokens = np.zeros((shape.batch, shape.length), np.int64)
        for index, lane in enumerate(lanes):
            tokens[index, : len(lane.tokens)] = lane.tokens
        lengths = np.array([len(lane.tokens) for lane in lanes], np.int64)
        run = self.device.verify if shape.kind == "verify" else self.device.prefill
        return run(tokens, lengths, starts, rows)

    def _declare(self, shape: Shape) -> None:
        if self._frozen:
            self.undeclared += 1
            msg = f"{shape} was not warmed up; the device declares {self.spec}"
            raise UndeclaredShape(msg)
        self._warm.add(shape)

    def _fill(self, filled: int, columns: int) -> int:
        """Write columns `filled...columns - 1` of every row, so that a warm-up step may attend them."""
        while filled < columns:
            if self.spec.resumes or filled == 0:
                size = min(columns - filled, self.spec.chunk)
                length = min(length for batch, length in self.spec.prefill_shapes if batch == 1 and length >= size)
                shape = Shape("prefill", 1, length, self.spec.attended(filled + size))
                for row in range(self.spec.rows):
                    self._run(shape, [Lane(row, np.zeros(size, np.int64), filled)])
            else:
                size = 1
                shape = Shape("decode", self.spec.rows, 1, self.spec.attended(filled + 1))
                self._run(shape, [Lane(row, _PAD, filled) for row in range(self.spec.rows)])
            filled += size
        return filled


_PAD = np.zeros(1, np.int64)
