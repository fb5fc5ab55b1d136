"""Laws of the rows: who owns them, what they remember, and what of it is reused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from langchain_accel.runtime.request import Request, State
from langchain_accel.runtime.rows import MIN_COPY, MIN_WAIT, NOTHING, Lease, Rows
from tests.unit_tests.devices_for_tests import bare_request, small_spec

GARBAGE = -1

prompts = st.builds(
    lambda family, shared, own: [family + index for index in range(shared)] + own,
    st.sampled_from([100, 200]),
    st.sampled_from([90, 60, 40, 17, 16, 15, 1]) | st.integers(1, 90),
    st.lists(st.integers(0, 3), max_size=40),
)


def common(known: list[int], prompt: list[int]) -> int:
    """Length of the prefix that two sequences share, one prompt token always left out."""
    length = 0
    for one, other in zip(known, prompt[:-1], strict=False):
        if one != other:
            break
        length += 1
    return length


class RowsMachine(RuleBasedStateMachine):
    """Rows against an arena of tokens that a device would hold, padding lanes included."""

    resumes, copies = True, True
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        spec = small_spec(
            resumes=self.resumes, copies=self.copies, prefill_shapes=((1, 128),), max_len=256, attended_lens=()
        )
        self.size = spec.rows
        self.rows = Rows(spec)
        self.arena = [[GARBAGE] * 256 for _ in range(self.size)]
        self.idle: dict[int, list[int]] = {row: [] for row in range(self.size)}  # least recently used first
        self.leased: dict[int, Request] = {}

    @rule(target=requests, several=st.lists(prompts, min_size=1, max_size=3))
    def arrive(self, several: list[list[int]]) -> Any:
        requests = [self.offer(prompt) for prompt in several]
        return multiple(*[request for request in requests if request.state is not State.WAITING])

    @rule(prompt=prompts)
    def come_and_go(self, prompt: list[int]) -> None:
        request = self.offer(prompt)
        if request.state is State.PREFILL:
            self.compute(request, 128)
            self.compute(request, 128)
            self.leave(request, intact=True)

    def offer(self, prompt: list[int]) -> Request:
        request = bare_request(prompt)
        lease = self.rows.offer(request.prompt)
        assert lease == self.rows.offer(request.prompt), "an offer is no promise, and changes nothing"
        if lease is None:
            assert not self.idle or self.worth_waiting(prompt)
            return request
        assert not self.worth_waiting(prompt)
        self.check(lease, prompt)
        self.rows.take(lease, request)
        assert (request.row, request.computed, request.reused) == (lease.row, lease.reused, lease.reused)
        request.state = State.PREFILL
        source = lease.row if lease.source is None else lease.source
        self.arena[lease.row][: lease.reused] = self.arena[source][: lease.reused]
        assert self.arena[lease.row][: lease.reused] == prompt[: lease.reused], "what is reused must stand there"
        del self.idle[lease.row]
        self.leased[lease.row] = request
        return request

    def known(self) -> list[tuple[int, list[int]]]:
        running = [(row, request.prompt[: request.computed].tolist()) for row, request in self.leased.items()]
        return [*self.idle.items(), *running]

    def best(self, prompt: list[int]) -> int:
        places = self.known() if self.resumes and self.copies else list(self.idle.items())
        return max((common(tokens, prompt) for _, tokens in places), default=0) if self.resumes else 0

    def worth_waiting(self, prompt: list[int]) -> bool:
        coming = [each.prompt.tolist() for each in self.leased.values() if each.state is State.PREFILL]
        gain = max((common(tokens, prompt) for tokens in coming), default=0) - self.best(prompt)
        return self.resumes and self.copies and gain >= MIN_WAIT

    def check(self, lease: Lease, prompt: list[int]) -> None:
        best, oldest = self.best(prompt), next(iter(self.idle))
        assert lease.row in self.idle
        assert lease.reused <= len(prompt) - 1
        if self.resumes and self.copies:
            assert lease.reused == best or best < MIN_COPY, "the longest prefix, where it pays"
            if lease.row != oldest:
                assert 2 * lease.reused >= len(self.idle[lease.row]), "a row must not lose more than it saves"
        else:
            assert lease.source is None
            assert lease.reused == best
        if lease.source is not None:
            assert lease.source != lease.row
            assert lease.reused >= MIN_COPY
        if lease.source is not None or not lease.reused:
            assert lease.row == oldest, "what is overwritten is what was not used for longest"

    @rule(request=requests, tokens=st.sampled_from([128, 64, 30, 1]))
    def compute(self, request: Request, tokens: int) -> None:
        if request.state is State.PREFILL:
            start, end = request.computed, min(request.computed + tokens, len(request.prompt))
            self.arena[request.row][start:end] = request.prompt[start:end].tolist()
            request.computed = end
            if not request.remaining:
                request.state = State.DECODE
                request.output.append(7)
        elif request.state is State.DECODE and request.computed < 250:
            self.arena[request.row][request.computed] = request.output[-1]
            request.computed += 1
            request.output.append(7 + len(request.output) % 2)

    @rule(request=consumes(requests), intact=st.booleans())
    def leave(self, request: Request, *, intact: bool) -> None:
        remembered = request.remembered if intact else NOTHING
        self.rows.give(request.row, remembered)
        request.state = State.DONE
        del self.leased[request.row]
        self.idle[request.row] = remembered.tolist() if self.resumes else []

    @rule(count=st.integers(1, 4))
    def pad(self, count: int) -> None:
        for row, tail in self.rows.tails()[:count]:
            self.arena[row][tail] = GARBAGE

    @invariant()
    def every_row_is_idle_or_leased_to_one_request(self) -> None:
        assert self.rows.idle == len(self.idle) == self.size - len(self.leased)
        owners = [request.row for request in self.leased.values()]
        assert len(set(owners)) == len(owners)

    @invariant()
    def a_tail_is_the_first_column_that_nobody_will_read(self) -> None:
        tails = self.rows.tails()
        assert sorted(row for row, _ in tails) == list(range(self.size))
        assert [tail for _, tail in tails] == sorted(tail for _, tail in tails), "shortest first"
        for row, tail in tails:
            held = self.leased[row].remembered.tolist() if row in self.leased else self.idle[row]
            assert tail == len(held)
            assert self.arena[row][:tail] == held, "padding and copies never touch what is remembered"


class ResumingMachine(RowsMachine):
    """Without copies."""

    copies = False


class ForgetfulMachine(RowsMachine):
    """Without resumes; nobody can copy then."""

    resumes = False


@pytest.mark.parametrize("machine", [RowsMachine, ResumingMachine, ForgetfulMachine])
def test_rows_keep_their_books_whatever_happens(machine: type[RowsMachine]) -> None:
    """Random arrivals, steps, padding and departures.

    Mutants seen to fail: `take` without the `del`; a limit of `len(prompt)`; tails one column early; `give` that moves
    nothing to the end of the queue; `_shared` one token too long; the rule on what a row is worth left out; the oldest
    row not looked at first; waiting left out.
    """
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=70 if machine is RowsMachine else 15, stateful_step_count=40, deadline=None),
    )


def leased(rows: Rows, prompt: list[int], computed: int) -> Request:
    request = bare_request(prompt)
    lease = rows.offer(request.prompt)
    assert lease is not None
    rows.take(lease, request)
    request.state, request.computed = State.PREFILL, computed
    return request


def test_a_request_waits_while_another_prefill_computes_its_prefix_and_not_a_step_longer() -> None:
    """Mutant seen to fail: MIN_WAIT compared with `>`."""
    rows = Rows(small_spec())
    first = leased(rows, [*range(MIN_WAIT), 900], 0)
    follower = np.array([*range(MIN_WAIT), 901, 902])
    assert rows.offer(follower) is None
    assert rows.offer(follower[1:]) is not None, "another prefix has nothing to wait for"
    first.computed = 1
    assert rows.offer(follower) is not None, "a token less to save is not worth the wait"
    first.computed = MIN_WAIT
    first.state = State.DECODE
    assert rows.offer(follower) == Lease(row=1, reused=MIN_WAIT, source=first.row)


@pytest.mark.parametrize("computed", [0, 40])
def test_a_request_whose_hope_is_aborted_starts_with_what_there_is(computed: int) -> None:
    """Mutant seen to fail: `_prefilling` that looks at every leased row, whatever its state."""
    rows = Rows(small_spec())
    first = leased(rows, list(range(100)), computed)
    follower = np.arange(100)
    assert rows.offer(follower) is None
    first.state = State.DONE
    rows.give(first.row, first.remembered)
    lease = rows.offer(follower)
    assert lease is not None
    assert lease.reused == computed


def test_a_follower_that_waits_keeps_its_place_and_others_pass_it() -> None:
    """Mutant seen to fail: a request that must wait is offered a row without the prefix."""
    rows = Rows(small_spec())
    leased(rows, list(range(64)), 0)
    assert rows.offer(np.arange(64)) is None
    assert rows.offer(np.arange(500, 564)) == Lease(1)
