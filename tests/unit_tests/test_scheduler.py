"""Laws of the scheduler: what happens next, as a pure function of what runs and what ran last."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_accel.devices.base import Spec
from langchain_accel.runtime.request import Request, State
from langchain_accel.runtime.rows import NOTHING, Rows
from langchain_accel.runtime.scheduler import LOOK_AHEAD, Decode, Prefill, Step, admit, next_step
from tests.unit_tests.devices_for_tests import bare_request, small_spec
from tests.unit_tests.test_shapes import specs


class Simulation:
    """Serves requests by the scheduler alone: no device, every request computes what it is given."""

    def __init__(self, spec: Spec, prompts: list[list[int]], answers: list[int]) -> None:
        self.spec = spec
        self.rows = Rows(spec)
        self.requests = [bare_request(prompt) for prompt in prompts]
        self.answers = dict(zip(self.requests, answers, strict=True))
        self.waiting = deque(self.requests)
        self.running: list[Request] = []
        self.admitted: list[Request] = []
        self.history: list[tuple[Step, bool, bool]] = []

    def run(self) -> None:
        last = None
        while self.waiting or self.running:
            while seat := admit(self.waiting, self.rows):
                request, lease = seat
                self.waiting.remove(request)
                self.rows.take(lease, request)
                request.state = State.PREFILL
                self.running.append(request)
                self.admitted.append(request)
            before = [(request.state, request.computed) for request in self.running]
            step = next_step(self.running, self.rows, self.spec, last)
            assert before == [(request.state, request.computed) for request in self.running], "a choice changes nothing"
            assert step is not None, "there is always something to do"
            states = {state for state, _ in before}
            self.history.append((step, State.PREFILL in states, State.DECODE in states))
            self.check(step)
            self.compute(step)
            last = step

    def check(self, step: Step) -> None:
        prefilling = [request for request in self.running if request.state is State.PREFILL]
        decoding = [request for request in self.running if request.state is State.DECODE]
        if isinstance(step, Prefill):
            assert (step.batch, step.length) in self.spec.prefill_shapes
            assert list(step.requests) == prefilling[: len(step.requests)], "the oldest prompts, in order of arrival"
            assert 1 <= len(step.requests) <= step.batch
        else:
            assert step.batch in self.spec.decode_shapes
            assert list(step.requests) == decoding, "every running answer gets its token"

    def compute(self, step: Step) -> None:
        for request in step.requests:
            request.computed += min(request.remaining, step.length) if isinstance(step, Prefill) else 1
            if not request.remaining:
                request.state = State.DECODE
            if request.state is State.DECODE:
                request.output.append(1)
            if len(request.output) == self.answers[request]:
                request.state = State.DONE
                self.running.remove(request)
                self.rows.give(request.row, request.remembered)


@st.composite
def simulations(draw: st.DrawFn, *, shared: bool) -> Simulation:
    spec = draw(specs())
    longest = max(1, spec.max_prompt)
    count = draw(st.integers(1, 12))
    lengths = draw(st.lists(st.just(longest) | st.integers(1, longest), min_size=count, max_size=count))
    own = draw(st.lists(st.booleans(), min_size=count, max_size=count)) if shared else [True] * count
    prompts = [[100 + index if own[index] else 0, *range(1, length)] for index, length in enumerate(lengths)]
    return Simulation(spec, prompts, draw(st.lists(st.integers(1, 6), min_size=count, max_size=count)))


@given(simulations(shared=True))
@settings(deadline=None)
def test_every_schedule_serves_every_request_in_declared_shapes(simulation: Simulation) -> None:
    """The checks are in `Simulation.check`, and the loop ends.

    Mutants seen to fail: prefill takes the newest requests; decode takes all but the last.
    """
    simulation.run()
    assert all(request.state is State.DONE for request in simulation.requests)


@given(simulations(shared=True))
@settings(deadline=None)
def test_prefill_and_decode_take_turns_while_there_is_both_to_do(simulation: Simulation) -> None:
    """So a long prompt holds answers up for one step at a time, and answers a prompt.

    Mutants seen to fail: prefill always first; decode always first.
    """
    simulation.run()
    for (before, *_), (after, prefills, decodes) in pairwise(simulation.history):
        if prefills and decodes:
            assert type(before) is not type(after)
        else:
            assert isinstance(after, Prefill) == prefills


@given(simulations(shared=False))
@settings(deadline=None)
def test_requests_that_share_nothing_get_their_rows_in_order_of_arrival(simulation: Simulation) -> None:
    """Mutant seen to fail: `admit` that looks at the newest waiting request first."""
    simulation.run()
    assert simulation.admitted == simulation.requests


@given(simulations(shared=True))
@settings(deadline=None)
def test_a_request_is_overtaken_only_while_it_waits_for_a_prefix(simulation: Simulation) -> None:
    """Where nothing can be copied there is nothing to wait for.

    Mutant seen to fail: waiting for a prefix on a device that cannot copy.
    """
    simulation.run()
    if not simulation.spec.copies:
        assert simulation.admitted == simulation.requests


def test_a_request_that_waits_for_a_prefix_lets_a_bounded_number_pass() -> None:
    """Mutants seen to fail: only the first waiting request considered; no bound."""
    spec = small_spec(max_len=256)
    rows, first = Rows(spec), bare_request([7] * 100)
    seat = admit([first], rows)
    assert seat is not None
    rows.take(seat[1], first)
    first.state = State.PREFILL
    followers = [bare_request([7] * 90 + [index]) for index in range(LOOK_AHEAD)]
    other = bare_request([1, 2, 3])
    assert admit(followers, rows) is None
    assert admit([*followers, other], rows) is None, "too far back"
    passing = admit([*followers[1:], other], rows)
    assert passing is not None
    assert passing[0] is other
    first.computed, first.state = 100, State.DECODE
    seat = admit([*followers, other], rows)
    assert seat is not None
    assert seat[0] is followers[0]
    assert seat[1].reused == 90


def test_nothing_runs_where_nothing_is_to_do() -> None:
    """Mutant seen to fail: `_decode` without its `if`."""
    spec = small_spec()
    assert next_step([], Rows(spec), spec, None) is None
    assert admit([], Rows(spec)) is None


def test_without_resumes_padding_needs_idle_rows() -> None:
    """Three prompts fill three quarters of a batch of four, but a running answer must not be padded over.

    Mutant seen to fail: `spare` that counts every row.
    """
    spec = small_spec(resumes=False, copies=False, prefill_shapes=((1, 8), (2, 8), (4, 8)), attended_lens=(), rows=4)
    rows = Rows(spec)
    running = [bare_request([index] * 8) for index in range(4)]
    for request in running:
        seat = admit([request], rows)
        assert seat is not None
        rows.take(seat[1], request)
        request.state = State.PREFILL
    running[0].state = State.DECODE
    answered = Decode(running[:1], 1)
    assert next_step(running, rows, spec, answered) == Prefill(running[1:3], 2, 8)
    rows.give(running[0].row, NOTHING)
    assert next_step(running[1:], rows, spec, answered) == Prefill(running[1:], 4, 8)
