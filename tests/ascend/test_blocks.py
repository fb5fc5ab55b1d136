"""Rows as strips of blocks: arithmetic, checked against a cache written out by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from langchain_accel.devices.ascend.blocks import Strips

STRIPS = some.builds(
    Strips.covering,
    rows=some.integers(1, 5),
    max_len=some.integers(1, 70),
    block_size=some.integers(1, 20),
)


@given(STRIPS)
def test_every_column_of_every_row_has_a_slot_of_its_own_in_the_rows_table(strips: Strips) -> None:
    """Mutant seen to fail: tables that count from the first row's block for every row."""
    rows, columns = np.divmod(np.arange(strips.rows * strips.columns), strips.columns)
    slots = strips.slots(rows, columns)
    assert len(set(slots.tolist())) == len(slots)
    tables = strips.tables(np.arange(strips.rows))
    assert (slots // strips.block_size == tables[rows, columns // strips.block_size]).all()
    assert (slots % strips.block_size == columns % strips.block_size).all()
    assert slots.max() < (strips.pool - 1) * strips.block_size


@given(STRIPS, some.integers(0, 300))
def test_columns_past_the_end_belong_to_nobody(strips: Strips, beyond: int) -> None:
    """Mutant seen to fail: no spare block, so that padding of one row is written into the next."""
    row = np.arange(strips.rows)
    slots = strips.slots(row, np.full(strips.rows, strips.columns + beyond))
    assert (slots // strips.block_size == strips.pool - 1).all()
    assert strips.pool - 1 not in strips.tables(row)


@given(STRIPS, some.data())
def test_the_blocks_that_hold_a_length_are_the_first_of_the_row(strips: Strips, data: some.DataObject) -> None:
    row, length = data.draw(some.integers(0, strips.rows - 1)), data.draw(some.integers(1, strips.columns))
    holding = strips.holding(row, length).tolist()
    table = strips.tables(np.array([row]))[0].tolist()
    assert holding == table[: len(holding)]
    assert (len(holding) - 1) * strips.block_size < length <= len(holding) * strips.block_size


def test_the_mask_lets_a_token_see_its_own_column_and_all_before() -> None:
    """Mutant seen to fail: `>=`, with which a token does not see itself."""
    mask = Strips(rows=1, blocks=2, block_size=3).causal_mask(np.array([0, 4]))
    assert mask.tolist() == [[0.0, -10000, -10000, -10000, -10000, -10000], [0.0, 0.0, 0.0, 0.0, 0.0, -10000]]
