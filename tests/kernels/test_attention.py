"""Attention one layer at a time: what the formula says, and the same bits whatever shares the call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("langchain_accel_kernels", reason="pip install ./kernels")

import langchain_accel_kernels as kernels

from tests.kernels.test_products import drawn, instructions

__all__ = ["instructions"]  # a fixture

Floats = NDArray[np.float32]
ROWS, LONGEST = 3, 150  # more than two blocks of columns
HOWS = {
    "plain": {},
    "window": {"window": 20},
    "soft cap": {"soft_cap": 3.0},
    "bias": {"column_bias": True},
    "all": {"window": 70, "soft_cap": 3.0, "column_bias": True},
}


def scores_of(how: str, heads: int) -> dict[str, Any]:
    entries: dict[str, Any] = {"scaling": 0.4, **HOWS[how]}
    if "column_bias" in entries:  # as ALiBi: another slope for each head
        slopes = np.float32(0.5) ** np.arange(1, heads + 1, dtype=np.float32)
        entries["column_bias"] = slopes[:, None] * np.arange(192, dtype=np.float32)
    return entries


def formula(
    qkv: Floats, heads: int, scaling: float, window: int = 0, soft_cap: float = 0, column_bias: Floats | None = None
) -> NDArray[np.float64]:
    """Attend `[n, heads + 2 * kv_heads, width]` tokens to themselves and those before, in float64."""
    tokens, kv_heads = len(qkv), (qkv.shape[1] - heads) // 2
    keys, values = (np.repeat(part, heads // kv_heads, 1) for part in np.split(qkv[:, heads:].astype(float), 2, 1))
    scores = np.einsum("qhd,khd->hqk", qkv[:, :heads].astype(float), keys) * scaling
    if soft_cap:
        scores = soft_cap * np.tanh(scores / soft_cap)
    if column_bias is not None:
        scores += column_bias[:, None, :tokens]
    queries, columns = np.arange(tokens)[:, None], np.arange(tokens)
    scores[:, (columns > queries) | (columns <= queries - (window or tokens))] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), values)


def cache(kv_heads: int, width: int, dtype: str) -> kernels.Cache:
    """Return a cache that earlier tokens left numbers in: reading one of them would show."""
    made = kernels.Cache.empty(ROWS, kv_heads, LONGEST, width, dtype)
    for array in (made.keys, made.values):
        array[...] = 77 if dtype == "float32" else 0x429A
    return made


def in_pieces(parts: kernels.Parts, held: kernels.Cache, qkv: Floats, cuts: list[int], **how: Any) -> Floats:
    """Attend the tokens of row 1 in pieces, each between padding that is no number, beside tokens of row 2."""
    pieces = []
    for index, (first, last) in enumerate(zip([0, *cuts], [*cuts, len(qkv)], strict=True)):
        size, beside, other = last - first, index % 40 * 3, 3
        padding = np.full((2, *qkv.shape[1:]), np.nan, np.float32)
        tokens = np.concatenate([padding, qkv[first:last], padding, qkv[:other]])
        lanes = np.array([[1, first, size, 2], [2, beside, other, size + 4]])
        out = parts.attend(held, lanes, tokens, **how)
        assert (out[[0, 1, size + 2, size + 3]] == 0).all()
        pieces.append(out[2 : size + 2])
    return np.concatenate(pieces)


SIZES = {
    "kv_heads": st.integers(1, 3),
    "group": st.integers(1, 8),
    "width": st.integers(1, 5).map(lambda sixteens: 16 * sixteens),
    "cuts": st.lists(st.integers(1, LONGEST - 1), max_size=4, unique=True).map(sorted),
    "how": st.sampled_from(sorted(HOWS)),
    "dtype": st.sampled_from(["float32", "bfloat16"]),
    "seed": st.integers(0, 2**16),
}


class TestEverySet:
    """On each instruction set that this processor has."""

    def test_numbers_are_those_of_the_formula(self, instructions: str) -> None:
        """Instructions for bfloat16 round queries, too, and what weighs values.

        Mutants seen to fail: the bias of head 0 for all; the cap after the bias; a window one column longer; the
        last column that a query sees left out; the two columns of a pair exchanged.
        """

        @settings(max_examples=25, deadline=None)
        @given(**SIZES)
        def check(kv_heads: int, group: int, width: int, cuts: list[int], how: str, dtype: str, seed: int) -> None:
            heads = kv_heads * group
            qkv, entries = drawn(seed, LONGEST, heads + 2 * kv_heads, width), scores_of(how, heads)
            found = in_pieces(kernels.Parts(), cache(kv_heads, width, dtype), qkv, cuts, **entries)
            pairs, allowed = instructions in ("avx512bf16", "amx"), 1e-4
            if dtype == "bfloat16":
                words = qkv[:, 0 if pairs else heads :].view(np.uint32)
                words += 0x7FFF + (words >> 16 & 1)
                words &= 0xFFFF0000
                allowed = 2**-8 * np.abs(qkv).max() if pairs else allowed
            np.testing.assert_allclose(found, formula(qkv, heads, **entries), rtol=1e-4, atol=allowed)

        check()

    @pytest.mark.usefixtures("instructions")
    def test_a_token_is_attended_alike_in_every_call(self) -> None:
        """Bit for bit: in pieces, one by one, by three threads.

        Mutants seen to fail: blocks of columns that begin where a task's window does; no meeting of the threads
        between writing and attending.
        """

        @settings(max_examples=10, deadline=None)
        @given(**SIZES)
        def check(kv_heads: int, group: int, width: int, cuts: list[int], how: str, dtype: str, seed: int) -> None:
            heads = kv_heads * group
            qkv, entries = drawn(seed, LONGEST, heads + 2 * kv_heads, width), scores_of(how, heads)
            one, three = kernels.Parts(), kernels.Parts(threads=3)
            whole = one.attend(cache(kv_heads, width, dtype), np.array([[0, 0, LONGEST, 0]]), qkv, **entries)
            for parts, where in ((one, cuts), (three, cuts), (three, list(range(100, LONGEST)))):
                assert (in_pieces(parts, cache(kv_heads, width, dtype), qkv, where, **entries) == whole).all()

        check()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [1, 16, 37, 64, 100])
def test_a_copied_row_is_the_row(length: int, dtype: str) -> None:
    """And columns behind the copy stay. Mutants seen to fail: whole blocks of keys only; one column of values more."""
    qkv, parts, held = drawn(0, 101, 6, 32), kernels.Parts(), cache(1, 32, dtype)
    other = drawn(1, 101, 6, 32)
    other[:length] = qkv[:length]
    for row, tokens in enumerate((qkv[:100], other[:100])):
        parts.attend(held, np.array([[row, 0, 100, 0]]), tokens, scaling=0.4)
    last = np.array([[1, 100, 1, 0]])
    before = parts.attend(held, last, other[100:], scaling=0.4)
    held.copy_row(0, 1, length)
    assert (parts.attend(held, last, other[100:], scaling=0.4) == before).all()
    held.copy_row(0, 1, 100)
    wanted = parts.attend(held, np.array([[0, 100, 1, 0]]), other[100:], scaling=0.4)
    assert (parts.attend(held, last, other[100:], scaling=0.4) == wanted).all()


class TestWhatDoesNotFit:
    """Is refused, before any memory is written that is not the cache's."""

    @pytest.mark.parametrize(
        "lane", [(3, 0, 1, 0), (-1, 0, 1, 0), (0, -1, 1, 0), (0, 191, 2, 0), (0, 0, 0, 0), (0, 0, 3, 3)]
    )
    def test_lanes(self, lane: tuple[int, ...]) -> None:
        with pytest.raises(RuntimeError, match=r"a lane of row .* is out of range"):
            kernels.Parts().attend(cache(1, 16, "float32"), np.array([lane]), drawn(0, 5, 3, 16), scaling=1)

    def test_tokens(self) -> None:
        lanes, held = np.array([[0, 0, 1, 0]]), cache(2, 16, "float32")
        for shape in ((1, 4, 16), (1, 7, 16), (1, 6, 32)):
            with pytest.raises(ValueError, match="for a cache of 2 heads of 16"):
                kernels.Parts().attend(held, lanes, drawn(0, *shape), scaling=1)

    def test_bias(self) -> None:
        with pytest.raises(ValueError, match=r"column_bias must be a contiguous array \(1, 192\)"):
            kernels.Parts().attend(
                cache(1, 16, "float32"), np.array([[0, 0, 1, 0]]), drawn(0, 1, 3, 16), scaling=1,
                column_bias=drawn(0, 1, 150),
            )  # fmt: skip

    def test_caches(self) -> None:
        held = cache(1, 16, "float32")
        for keys in (held.keys[:2], held.keys.astype(np.uint16), held.keys.swapaxes(3, 4)):
            with pytest.raises(ValueError, match="want contiguous keys"):
                kernels.Cache(keys, held.values)

    def test_closed_parts(self) -> None:
        parts = kernels.Parts()
        parts.close()
        with pytest.raises(RuntimeError, match="the parts are closed"):
            parts.attend(cache(1, 16, "float32"), np.array([[0, 0, 1, 0]]), drawn(0, 1, 3, 16), scaling=1)
