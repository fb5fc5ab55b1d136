"""Laws of routing: which replica a request goes to, and which rank an actor becomes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_accel.devices.base import Rank
from langchain_accel.runtime.ray_seats import seated
from langchain_accel.runtime.routing import Candidate, Prompts, choose
from langchain_accel.runtime.rows import MIN_COPY


def ints(*tokens: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(tokens, np.int64)


def test_the_least_loaded_is_chosen_where_nobody_remembers() -> None:
    """Mutants seen to fail: the most loaded; the first."""
    assert choose([Candidate(3), Candidate(1), Candidate(2)], rows=8) == 1


def test_replicas_with_as_much_to_do_take_turns() -> None:
    assert choose([Candidate(1, last=5), Candidate(1, last=3), Candidate(1, last=4)], rows=8) == 1


def test_whoever_remembers_is_chosen_unless_it_has_half_its_rows_more_to_do() -> None:
    """Mutants seen to fail: no slack; no limit to it; the slack counted from nothing instead of from the least."""
    for least in (0, 3):
        assert choose([Candidate(least), Candidate(least + 4, shared=100)], rows=8) == 1
        assert choose([Candidate(least), Candidate(least + 5, shared=100)], rows=8) == 0


def test_one_row_leaves_one_request_of_slack() -> None:
    assert choose([Candidate(0), Candidate(1, shared=100)], rows=1) == 1
    assert choose([Candidate(0), Candidate(2, shared=100)], rows=1) == 0


def test_a_few_tokens_more_or_less_make_no_difference() -> None:
    """A system prompt that all remember draws no crowd. Mutant seen to fail: the longest alone."""
    assert choose([Candidate(1, shared=100), Candidate(0, shared=101 - MIN_COPY)], rows=8) == 1
    assert choose([Candidate(1, shared=100), Candidate(0, shared=100 - MIN_COPY)], rows=8) == 0


@given(
    st.lists(st.builds(Candidate, st.integers(0, 50), st.integers(0, 200), st.integers(0, 9)), min_size=1, max_size=6),
    st.integers(1, 32),
)
def test_nobody_is_buried(candidates: list[Candidate], rows: int) -> None:
    """The chosen one has never more than half its rows more to do than the least loaded."""
    chosen = candidates[choose(candidates, rows)]
    assert chosen.load - min(candidate.load for candidate in candidates) <= max(1, rows // 2)


def test_prompts_are_remembered_by_their_beginning_and_the_oldest_is_forgotten() -> None:
    """Mutant seen to fail: a conversation takes a second place. To catch: a prompt that comes again grows older."""
    prompts = Prompts(rows=2)
    assert prompts.shared([1, 2, 3]) == 0
    prompts.add(ints(1, 2, 3))
    prompts.add(ints(7, 8))
    assert [prompts.shared(each) for each in ([1, 2, 3], [1, 2, 9, 9], [7], [8])] == [3, 2, 1, 0]
    prompts.add(ints(1, 2, 3))
    prompts.add(ints(4))
    assert [prompts.shared(each) for each in ([1, 2, 3], [7, 8], [4])] == [3, 0, 1]
    prompts.add(ints(4, 6))
    assert [prompts.shared(each) for each in ([1, 2, 3], [4, 6])] == [3, 2]


@pytest.mark.parametrize(
    ("nodes", "order"),
    [
        (["a"], [(0, Rank(0, 1, 0, 1))]),
        (["b", "a"], [(0, Rank(0, 2, 0, 1)), (1, Rank(1, 2, 0, 1))]),
        (
            ["b", "a", "b", "a"],
            [(0, Rank(0, 4, 0, 2)), (2, Rank(1, 4, 1, 2)), (1, Rank(2, 4, 0, 2)), (3, Rank(3, 4, 1, 2))],
        ),
        (["a", "a", "b"], [(0, Rank(0, 3, 0, 2)), (1, Rank(1, 3, 1, 2)), (2, Rank(2, 3, 0, 1))]),
    ],
)
def test_ranks_of_a_node_are_neighbours_and_the_first_actor_is_rank_0(
    nodes: list[str], order: list[tuple[int, Rank]]
) -> None:
    """Mutants seen to fail: sorted by the node's name; `local_size` of the whole group."""
    assert seated(nodes) == order
