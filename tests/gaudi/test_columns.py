"""The bookkeeping of columns: what a row attends is what it was given, in order and without gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_accel.devices.gaudi.columns import Columns

ROWS, LENGTH = 3, 12


class Model:
    """An arena of token ids, driven as the device drives the real one."""

    def __init__(self) -> None:
        self.columns = Columns(ROWS, LENGTH)
        self.arena = np.full((ROWS, LENGTH), -1)
        self.rows: list[list[int]] = [[] for _ in range(ROWS)]
        self.next = 0

    def fresh(self, count: int) -> list[int]:
        self.next += count
        return list(range(self.next - count, self.next))

    def prefill(self, row: int, length: int) -> None:
        self.rows[row] = self.fresh(length)
        end = self.columns.seat(np.array([row]), np.array([length]))
        self.arena[row] = -1  # a prefill overwrites the whole row, with padding where it has no tokens
        self.arena[row, end - length : end] = self.rows[row]

    def decode(self, advanced: list[int]) -> None:
        """Rows that are not `advanced` pad at their tails."""
        positions = np.array([len(row) for row in self.rows])
        if (sources := self.columns.align(positions)) is not None:
            self.arena = np.take_along_axis(self.arena, sources, axis=1)
        mask, end = self.columns.advance(positions)
        tokens = self.fresh(ROWS)
        self.arena[:, int(end) - 1] = tokens
        for row in range(ROWS):
            attended = self.arena[row][mask[row] == 1].tolist()
            assert attended == [*self.rows[row], tokens[row]]
            seen = np.flatnonzero(mask[row])
            assert (np.diff(seen) == 1).all(), "a gap would shift distances that a model takes from columns"
            if row in advanced:
                self.rows[row].append(tokens[row])


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("prefill"), st.integers(0, ROWS - 1), st.integers(1, LENGTH - 1)),
        st.tuples(st.just("decode"), st.sets(st.integers(0, ROWS - 1)), st.just(0)),
        st.tuples(st.just("forget"), st.integers(0, ROWS - 1), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_a_row_attends_all_of_its_tokens_and_nothing_else(steps: list[tuple[str, object, int]]) -> None:
    """Any order of joining, leaving, working and waiting.

    Mutants: `align` compares the first rows only; `advance` masks one column less.
    """
    model = Model()
    for kind, what, length in steps:
        if kind == "prefill":
            model.prefill(what, length)  # type: ignore[arg-type]
        elif kind == "forget":
            model.rows[what] = []  # type: ignore[index]
            model.columns.forget(what)  # type: ignore[arg-type]
        elif all(len(row) < LENGTH for row in model.rows):
            model.decode(list(what))  # type: ignore[call-overload]


def test_rows_that_work_together_are_never_shifted() -> None:
    """Mutant: `align` shifts whenever it is asked."""
    model = Model()
    for row in range(ROWS):
        model.prefill(row, 4)
    for _ in range(LENGTH - 4):
        model.decode(list(range(ROWS)))
    assert model.columns.shifts == 0


def test_one_shift_mends_newcomers_that_are_longer() -> None:
    model = Model()
    for row, length in enumerate((2, 5, 9)):
        model.prefill(row, length)
    for _ in range(3):
        model.decode([0, 1, 2])
    assert model.columns.shifts == 1


@pytest.mark.parametrize("length", [1, LENGTH - 1])
def test_a_row_uses_every_column(length: int) -> None:
    model = Model()
    model.prefill(0, length)
    while len(model.rows[0]) < LENGTH:
        model.decode([0])
    assert model.columns.shifts <= 1
