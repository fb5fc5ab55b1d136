"""Laws of the engine: answers do not depend on company, rows come back, and nobody is left waiting."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langchain_accel.devices.base import Device
from langchain_accel.errors import (
    AccelError,
    DeviceLost,
    EngineClosed,
    InvalidRequest,
    PlanRejected,
    PromptTooLong,
    QueueFull,
    StepFailed,
)
from langchain_accel.runtime.checkpoint import Checkpoint, open_checkpoint
from langchain_accel.runtime.constraints import Grammar
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.stream import Completion, Stream
from tests.unit_tests.devices_for_tests import (
    GUARD,
    Call,
    Failing,
    Gate,
    Ledger,
    Letters,
    Recorder,
    ledger_engine,
    on_reference,
    small_spec,
)

pytestmark = pytest.mark.timeout(120)

VOCABULARY = 320
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "all on": {},
    "no attended lengths": {"attended_lens": ()},
    "resumes without copies": {"copies": False, "prefill_shapes": ((1, 16), (2, 16))},
    "no resumes": {"resumes": False, "copies": False},
    "fixed batches": {
        "resumes": False,
        "copies": False,
        "prefill_shapes": ((1, 192),),
        "decode_shapes": (4,),
        "attended_lens": (),
    },
}


@dataclass
class House:
    """An engine, its device, and the answers that it should give."""

    engine: Engine
    device: Recorder
    alone: Callable[..., Completion]

    @property
    def resumes(self) -> bool:
        return self.engine.spec.resumes


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return open_checkpoint(tiny)


@pytest.fixture(scope="module")
def alone(tiny: Path, checkpoint: Checkpoint) -> Iterator[Callable[..., Completion]]:
    """Answers of an engine that serves one request at a time, reuses nothing and drafts nothing."""
    plain = {"rows": 1, "resumes": False, "copies": False, "drafts": 0}
    with on_reference(tiny, checkpoint.tokenizer, checkpoint.eos_ids, **plain) as (
        engine,
        _,
    ):
        known: dict[Any, Completion] = {}

        def answer(prompt: list[int], params: SamplingParams) -> Completion:
            key = (tuple(prompt), repr(params))
            if key not in known:
                known[key] = engine.submit(prompt, params).result()
            return known[key]

        yield answer


@pytest.fixture(scope="module")
def houses(tiny: Path, checkpoint: Checkpoint, alone: Callable[..., Completion]) -> Iterator[Callable[[str], House]]:
    with ExitStack() as stack:
        built: dict[str, House] = {}

        def house(name: str) -> House:
            if name not in built:
                context = on_reference(
                    tiny, checkpoint.tokenizer, checkpoint.eos_ids, wrap=Recorder, **CONFIGURATIONS[name]
                )
                built[name] = House(*stack.enter_context(context), alone)
            return built[name]

        yield house


@pytest.fixture(params=CONFIGURATIONS)
def house(houses: Callable[[str], House], request: pytest.FixtureRequest) -> House:
    found = houses(request.param)
    found.device.calls.clear()
    return found


@pytest.fixture
def full(houses: Callable[[str], House]) -> House:
    """Everything on."""
    found = houses("all on")
    found.device.calls.clear()
    return found


@pytest.fixture
def gated() -> Iterator[tuple[Engine, Gate]]:
    """An engine that computes nothing, and whose every step can be held up."""
    engine, device = ledger_engine(Gate)
    yield engine, device
    device.open()
    engine.close()


def params(tokens: int, **others: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": tokens, "ignore_eos": True, **others})


def random_prompts(seed: int, count: int, longest: int = 120) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(5, VOCABULARY, random.integers(1, longest)).tolist() for _ in range(count)]


def at_rest(engine: Engine) -> None:
    """Check that nothing runs or waits, and that every row is idle."""
    deadline, quiet = time.monotonic() + GUARD, 0
    while quiet < 3 and time.monotonic() < deadline:  # a request is in neither list for a moment as it comes in
        quiet = 0 if engine._loop.busy or engine.stats().queued else quiet + 1
        time.sleep(0.002)
    stats = engine.stats()
    assert (stats.running, stats.queued, stats.undeclared_shapes) == (0, 0, 0)
    assert engine._loop._rows.idle == engine.spec.rows


# ---------------------------------------------------------------- answers


def test_answers_in_company_equal_answers_alone(house: House) -> None:
    """Greedy and seeded ones, of all lengths, in every configuration, streamed and whole.

    Mutants seen to fail: padding at column 0; a chunk one token late; logits of the wrong lane; one random generator
    for all.
    """
    jobs = [
        (prompt, params(3 + index % 20, temperature=0.8 * (index % 2), seed=index, logprobs=2 if index % 3 else None))
        for index, prompt in enumerate(random_prompts(1, 24))
    ]
    streams = [house.engine.submit(prompt, each) for prompt, each in jobs]
    for index, ((prompt, each), stream) in enumerate(zip(jobs, streams, strict=True)):
        expected = house.alone(prompt, each)
        deltas = list(stream) if index % 2 else None
        tokens = tuple(token for delta in deltas for token in delta.tokens) if deltas else stream.result().tokens
        assert tokens == expected.tokens
        if deltas:
            assert "".join(delta.text for delta in deltas) == expected.text
            got = [entry.logprob for delta in deltas for entry in delta.logprobs]
            assert got == pytest.approx([entry.logprob for entry in expected.logprobs], abs=1e-5)
    at_rest(house.engine)


def test_the_second_time_and_after_others_answers_are_the_same(house: House) -> None:
    """What rows remember of the past changes nothing but the work.

    Mutants seen to fail: a row given back as remembering a token more; `_shared` one token too long.
    """
    base = random_prompts(2, 1, longest=2)[0] + list(range(10, 80))
    prompts = [base, [*base[:50], 9], base, base[:20], [*base, 7, 8], [6, *base]]
    for _ in range(2):
        for prompt in prompts:
            assert house.engine.submit(prompt, params(8)).result().tokens == house.alone(prompt, params(8)).tokens
        streams = [house.engine.submit(prompt, params(8)) for prompt in prompts]
        for prompt, stream in zip(prompts, streams, strict=True):
            assert stream.result().tokens == house.alone(prompt, params(8)).tokens
    at_rest(house.engine)


def test_a_long_prompt_holds_running_answers_up_for_one_prefill_step_at_a_time(full: House) -> None:
    """Mutant seen to fail: prefill always first."""
    running = full.engine.submit([5, 6, 7], params(60))
    next(running)
    long = full.engine.submit(list(range(5, 205)), params(2))
    assert long.result().tokens == full.alone(list(range(5, 205)), params(2)).tokens
    assert running.result().finish.completion_tokens == 60
    kinds = [call.kind for call in full.device.steps]
    first, last = kinds.index("prefill", 1), len(kinds) - 1 - kinds[::-1].index("prefill")
    assert last > first, "a prompt longer than a chunk takes several steps"
    assert "prefill,prefill" not in ",".join(kinds[: last + 1]), "between two there is a decode"


def test_a_shared_prefix_is_computed_once(full: House) -> None:
    """Eight questions about one document, on four rows.

    Mutants seen to fail: nobody waits for a prefix; nothing copied from busy rows.
    """
    document = random_prompts(3, 1, longest=2)[0] + list(range(100, 227))
    prompts = [[*document, index, index + 1] for index in range(10, 18)]
    streams = [full.engine.submit(prompt, params(5)) for prompt in prompts]
    results = [stream.result() for stream in streams]
    assert [result.tokens for result in results] == [full.alone(prompt, params(5)).tokens for prompt in prompts]
    computed = sum(len(prompt) - result.finish.reused_tokens for prompt, result in zip(prompts, results, strict=True))
    assert computed == len(document) + 2 * len(prompts)
    prefilled = sum(
        length for call in full.device.steps if call.kind == "prefill" for length in call.lengths if length > 1
    )
    assert prefilled <= computed
    assert sum(call.kind == "copy" for call in full.device.calls) <= len(prompts) - 1


def test_reused_tokens_are_reported(houses: Callable[[str], House]) -> None:
    """Mutants seen to fail: the whole prompt called reused; reuse on a device that cannot resume."""
    for name in CONFIGURATIONS:
        house = houses(name)
        prompt = random_prompts(4, 1, longest=2)[0] + list(range(200, 260))
        first = house.engine.submit(prompt, params(3)).result().finish
        again = house.engine.submit(prompt, params(3)).result().finish
        longer = house.engine.submit([*prompt, 5], params(3)).result().finish
        reused = (first.reused_tokens, again.reused_tokens, longer.reused_tokens)
        assert reused == ((0, len(prompt) - 1, len(prompt)) if house.resumes else (0, 0, 0))
        assert (first.prompt_tokens, first.completion_tokens) == (len(prompt), 3)
        assert 0 <= first.queued_seconds <= first.first_token_seconds <= first.seconds


# ---------------------------------------------------------------- leaving early


def leave(how: str, stream: Stream) -> None:
    if how == "close":
        stream.close()
    else:
        assert how == "drop"


@pytest.mark.parametrize("how", ["close", "drop"])
@pytest.mark.parametrize("when", ["waiting", "prefill", "decode"])
def test_leaving_frees_the_row_within_one_step(gated: tuple[Engine, Gate], how: str, when: str) -> None:
    """Steps are counted: the one that is under way, and no other, still runs the request.

    Mutants seen to fail: `aborted` never looked at; looked at only in the queue, or only in rows.
    """
    engine, device = gated
    device.shut()
    prompt = list(range(40))  # two prefill steps
    if when == "waiting":
        others = [engine.submit([index], params(3)) for index in range(4)]
        device.wait_for_step()
        others += [engine.submit([index], params(3)) for index in range(4, 8)]
    stream: Stream | None = engine.submit(prompt, params(80))
    if when == "prefill":
        device.wait_for_step()
    if when == "decode":
        for _ in range(4):
            device.let_one_pass()
        device.wait_for_step()
    device.calls.clear()
    assert stream is not None
    leave(how, stream)
    stream = None
    if when == "waiting":
        device.let_one_pass()
        device.wait_for_step()
        assert engine.stats().aborted == 1, "also while no row is free"
    device.open()
    if when == "waiting":
        for other in others:
            other.result()
    last = engine.submit([45], params(1)).result()
    assert last.finish.completion_tokens == 1
    at_rest(engine)
    assert engine.stats().aborted == 1
    lengths = [call.lengths for call in device.steps]
    assert not any(length > 1 for call in lengths for length in call), "nothing of the long prompt is computed any more"
    if when != "waiting":
        assert len(device.steps) == 1, "only the new request's own prefill"


def test_leaving_an_iterator_early_aborts(gated: tuple[Engine, Gate]) -> None:
    """Mutant seen to fail: no `__del__`."""
    engine, device = gated
    device.shut()
    stream: Stream | None = engine.submit([1, 2, 3], params(100))
    for _ in range(3):
        device.let_one_pass()
    assert stream is not None
    for count, _ in enumerate(stream):
        if count == 2:
            break
    stream = None
    device.open()
    at_rest(engine)
    assert engine.stats().aborted == 1
    assert engine.stats().decode_steps == 3


async def test_cancelling_a_task_aborts(gated: tuple[Engine, Gate]) -> None:
    """Before the first token, while it waits for the whole answer, and in the middle of an iteration.

    Mutant seen to fail: `_await` that does not close.
    """
    engine, device = gated
    device.shut()
    ready = asyncio.Event()

    async def iterate() -> None:
        async for _ in engine.submit([1, 2, 3], params(100)):
            ready.set()

    async def whole() -> Completion:
        return await engine.submit([1, 2, 4], params(100)).aresult()

    tasks = [asyncio.create_task(iterate()), asyncio.create_task(whole()), asyncio.create_task(iterate())]
    await asyncio.to_thread(device.wait_for_step)
    tasks[2].cancel()
    await asyncio.wait([tasks[2]])
    for _ in range(3):
        await asyncio.to_thread(device.let_one_pass)
    await ready.wait()
    await asyncio.to_thread(device.wait_for_step)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    device.open()
    at_rest(engine)
    assert engine.stats().aborted == 3
    assert [task.cancelled() for task in tasks] == [True] * 3


@pytest.mark.parametrize("read", [list, Stream.result])
def test_closing_a_stream_wakes_the_thread_that_waits_for_it(
    gated: tuple[Engine, Gate], read: Callable[[Stream], Any]
) -> None:
    """Mutant seen to fail: an aborted request's mailbox is left open."""
    engine, device = gated
    device.shut()
    stream = engine.submit([1, 2, 3], params(100))
    device.wait_for_step()
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            read(stream)
        except AccelError as error:
            raised.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    while stream._mailbox._wake is None:
        time.sleep(0.001)
    stream.close()
    device.open()
    thread.join(GUARD)
    assert not thread.is_alive()
    assert "closed before the answer was complete" in str(raised[0])


def test_asking_a_closed_stream_for_its_result_does_not_hang(gated: tuple[Engine, Gate]) -> None:
    """Mutant seen to fail: as above."""
    engine, device = gated
    device.shut()
    stream = engine.submit([1, 2, 3], params(100))
    device.wait_for_step()
    stream.close()
    device.open()
    with pytest.raises(AccelError, match="was closed"):
        stream.result()


def test_a_finished_request_leaves_nothing_behind(gated: tuple[Engine, Gate]) -> None:
    """Mutant seen to fail: finished requests kept in a list of the loop."""
    engine, _ = gated
    kept = []
    for _ in range(3):
        stream = engine.submit([1, 2, 3], params(4))
        kept.append(weakref.ref(stream._mailbox))
        stream.result()
        del stream
    engine.submit([5], params(1)).result()  # the loop remembers its last step
    gc.collect()
    assert [mailbox() for mailbox in kept] == [None] * 3


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], r"non-empty sequence of token ids, got shape \(0,\)"),
        ([[1, 2]], r"non-empty sequence of token ids, got shape \(1, 2\)"),
        ([5, VOCABULARY], rf"from 0 to {VOCABULARY - 1}, the prompt has 5 to {VOCABULARY}"),
        ([-1, 5], rf"from 0 to {VOCABULARY - 1}, the prompt has -1 to 5"),
    ],
)
def test_a_prompt_that_is_none_is_refused_in_the_callers_thread(full: House, prompt: Any, message: str) -> None:
    """Mutants seen to fail: one check left out at a time."""
    with pytest.raises(InvalidRequest, match=message):
        full.engine.submit(prompt)
    assert full.device.calls == []


@pytest.mark.parametrize(("name", "limit"), [("all on", 255), ("no resumes", 255), ("fixed batches", 192)])
def test_a_prompt_that_is_too_long_is_refused_with_numbers(
    houses: Callable[[str], House], name: str, limit: int
) -> None:
    """And the longest one is served, to the end of the row.

    Mutants seen to fail: the limit one higher; the chunk forgotten where nothing resumes; room counted one too many.
    """
    engine = houses(name).engine
    with pytest.raises(
        PromptTooLong, match=rf"has {limit + 1} tokens; max_len=256.* longest prompt is {limit}"
    ) as caught:
        engine.submit([7] * (limit + 1))
    assert (caught.value.prompt_tokens, caught.value.limit) == (limit + 1, limit)
    finish = engine.submit([7] * limit, SamplingParams(ignore_eos=True)).result().finish
    assert (finish.reason, finish.completion_tokens) == ("length", 256 - limit)


def test_settings_outside_the_vocabulary_are_refused(full: House) -> None:
    """Mutant seen to fail: checked in the engine's thread, where it fails the engine."""
    for wrong in ({"stop_token_ids": (VOCABULARY,)}, {"logit_bias": {-1: 1.0}}):
        with pytest.raises(InvalidRequest):
            full.engine.submit([5], params(3, **wrong))


def test_a_prompt_is_copied(gated: tuple[Engine, Gate]) -> None:
    """Mutant seen to fail: `asarray`."""
    engine, device = gated
    prompt = np.array([1, 2, 3], np.int64)
    device.shut()
    stream = engine.submit(prompt, params(4))  # type: ignore[arg-type]
    prompt[:] = 9
    device.open()
    assert stream.result().tokens == device.device.answer([1, 2, 3], 4)  # type: ignore[attr-defined]


def test_a_full_queue_refuses_with_numbers_and_serves_on() -> None:
    """Four rows and three waiting: whoever finds a free row does not count as waiting.

    Mutants seen to fail: no limit; `>`; free rows not counted.
    """
    engine, device = ledger_engine(Gate, queue_limit=3)
    try:
        device.shut()
        streams = [engine.submit([index], params(3)) for index in range(7)]
        with pytest.raises(QueueFull, match=r"\d requests wait for one of 4 rows and the queue holds 3.*queue_limit"):
            engine.submit([7], params(3))
        streams[5].close()
        device.open()
        for index in (0, 1, 2, 3, 4, 6):
            assert streams[index].result().tokens == device.device.answer([index], 3)
        assert engine.submit([7], params(3)).result().tokens == device.device.answer([7], 3)
    finally:
        device.open()
        engine.close()


# ---------------------------------------------------------------- failures


def failure_of(stream: Stream) -> StepFailed | None:
    try:
        stream.result()
    except StepFailed as error:
        return error
    return None


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_failing_step_fails_the_requests_it_touched_and_no_other(kind: str) -> None:
    """With the cause, each its own error; the engine lives on, and nothing of the broken step is remembered.

    Mutants seen to fail: all running requests failed; the engine ended; a broken row remembered; one error for all.
    """
    engine, device = ledger_engine(Failing)
    ledger = device.device
    try:
        device.shut()
        running = engine.submit([1, 2, 3], params(100))
        device.wait_for_step()
        broken = ValueError("a bit fell over")

        def refuse(call: Call) -> BaseException | None:
            if call.kind != kind or (max(call.lengths) < 9 if kind == "prefill" else call.batch < 3):
                return None
            device.refuse = lambda call: None
            for row in call.rows:  # whatever the step wrote is not to be trusted
                ledger.held[row] = [99] * len(ledger.held[row])
            return broken

        prompts = [[10, *range(30)], [20, *range(30)]]
        device.refuse = refuse
        streams = [engine.submit(prompt, params(50)) for prompt in prompts]
        device.open()
        errors = [error for stream in [*streams, running] if (error := failure_of(stream))]
        assert len(errors) == (3 if kind == "decode" else 1)
        assert len(set(map(id, errors))) == len(errors)
        for error in errors:
            assert error.__cause__ is broken
            assert "ValueError: a bit fell over" in str(error)
        assert engine.stats().failed == len(errors)
        for prompt in [*prompts, [1, 2, 3]]:
            assert engine.submit(prompt, params(20)).result().tokens == ledger.answer(prompt, 20)
        at_rest(engine)
    finally:
        engine.close()


def test_a_copy_that_fails_fails_its_request_alone() -> None:
    """Mutant seen to fail: the error of `copy_row` not caught."""
    engine, device = ledger_engine(Failing)
    try:
        prompt = list(range(40))
        device.shut()
        first = engine.submit(prompt, params(80))
        for _ in range(2):
            device.let_one_pass()
        device.fail_once(RuntimeError("no copy"), "copy")
        stream = engine.submit([*prompt, 1], params(3))
        device.open()
        with pytest.raises(StepFailed, match="no copy"):
            stream.result()
        assert engine.submit([*prompt, 1], params(3)).result().tokens == device.device.answer([*prompt, 1], 3)
        assert first.result().tokens[-1] == device.device.answer(prompt, 80)[-1]
    finally:
        engine.close()


def test_a_device_that_cannot_forget_costs_nobody_an_answer() -> None:
    """Mutants seen to fail: the answer handed out after `forget`, and not at all where that fails."""
    engine, device = ledger_engine(Failing, resumes=False, copies=False, prefill_shapes=((1, 64),), attended_lens=())
    try:
        device.refuse = lambda call: RuntimeError("never") if call.kind == "forget" else None
        for prompt in ([1, 2], [3, 4]):
            assert engine.submit(prompt, params(5)).result().tokens == device.device.answer(prompt, 5)
        engine.submit([5, 6], params(60)).close()
        at_rest(engine)
    finally:
        engine.close()


def test_a_tokenizer_that_fails_fails_its_request_alone() -> None:
    """Mutant seen to fail: errors after the device's step not caught."""

    class Stumbles(Letters):
        def decode(self, ids: Any, *, skip_special_tokens: bool) -> str:
            if bad in ids:
                msg = "thirteen"
                raise KeyError(msg)
            return super().decode(ids, skip_special_tokens=skip_special_tokens)

    device = Ledger(small_spec())
    engine = Engine(lambda progress: device, Stumbles(), eos_ids=frozenset())
    prompts = [[index, 1] for index in range(40)]
    bad = device.answer(prompts[20], 3)[1]
    unlucky = {index for index, prompt in enumerate(prompts) if bad in device.answer(prompt, 3)}
    try:
        for index, prompt in enumerate(prompts):
            stream = engine.submit(prompt, params(3))
            if index in unlucky:
                with pytest.raises(StepFailed, match="thirteen"):
                    stream.result()
            else:
                assert stream.result().tokens == device.answer(prompt, 3)
        at_rest(engine)
    finally:
        engine.close()


def test_a_lost_device_fails_everything_and_everything_after() -> None:
    """Running, waiting and later requests; the device is released.

    Mutants seen to fail: `lost` never set; waiting requests forgotten; the thread asleep instead of ended.
    """
    engine, device = ledger_engine(Failing)
    device.refuse = lambda call: DeviceLost("the card fell out") if call.kind == "decode" else None
    device.shut()
    streams = [engine.submit([index], params(100)) for index in range(9)]
    device.open()
    for stream in streams:
        with pytest.raises(DeviceLost, match="the card fell out"):
            stream.result()
    assert engine.closed
    with pytest.raises(DeviceLost, match="the card fell out"):
        engine.submit([1])
    engine._thread.join(GUARD)
    assert device.closed == 1
    assert (engine.stats().running, engine.stats().queued) == (0, 0)
    engine.close()


def test_the_only_request_on_a_lost_device_leaves_no_engine_asleep() -> None:
    """Mutant seen to fail: a thread that goes to sleep although its device is lost."""
    engine, device = ledger_engine(Failing)
    device.fail_once(DeviceLost("gone"), "prefill")
    with pytest.raises(DeviceLost, match="gone"):
        engine.submit([1]).result()
    assert engine.closed
    engine._thread.join(GUARD)
    assert not engine._thread.is_alive()
    assert device.closed == 1


def test_a_bug_in_the_loop_reaches_those_who_wait() -> None:
    """Mutant seen to fail: the thread dies without a word."""
    engine, _ = ledger_engine()

    def bug() -> None:
        msg = "a bug"
        raise ZeroDivisionError(msg)

    engine._loop.step = bug  # type: ignore[method-assign]
    with pytest.raises(DeviceLost, match=r"engine's thread failed: ZeroDivisionError: a bug"):
        engine.submit([1]).result()
    with pytest.raises(DeviceLost):
        engine.submit([1])


class PickyError(DeviceLost):
    """An error whose constructor wants more than a message."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


def test_an_error_of_any_make_reaches_those_who_wait() -> None:
    """Mutant seen to fail: the error made again by its constructor."""
    engine, device = ledger_engine(Failing)
    device.fail_once(PickyError("code 7", code=7), "prefill")
    with pytest.raises(PickyError, match="code 7"):
        engine.submit([1]).result()
    engine.close()


@pytest.mark.parametrize("error", [PlanRejected("too large"), OSError("no such card"), SystemExit(3)])
def test_a_load_that_fails_raises_in_the_caller(error: BaseException) -> None:
    """And leaves no thread behind.

    Mutants seen to fail: only `Exception` caught; `ready` not set.
    """
    before = threading.active_count()

    def load(progress: Any) -> Device:
        raise error

    with pytest.raises(type(error)) as caught:
        Engine(load, Letters(), eos_ids=frozenset())
    assert caught.value is error
    assert threading.active_count() == before


def test_a_warm_up_that_fails_raises_in_the_caller_and_releases_the_device() -> None:
    """Mutant seen to fail: the device closed only where an engine came to be."""
    device = Failing(Ledger(small_spec()))
    device.refuse = lambda call: MemoryError("graph") if call.kind == "decode" else None
    with pytest.raises(MemoryError):
        Engine(lambda progress: device, Letters(), eos_ids=frozenset())
    assert device.closed == 1


def test_what_a_failed_load_left_in_memory_goes_with_its_error() -> None:
    """Without waiting for the garbage collector: it may be most of the memory.

    Mutant seen to fail: the error raised while a list of the thread still holds it.
    """

    class Weights:
        pass

    held: list[weakref.ref[Weights]] = []

    def load(progress: Any) -> Device:
        weights = Weights()
        held.append(weakref.ref(weights))
        msg = "too large"
        raise PlanRejected(msg)

    gc.disable()
    try:
        try:
            Engine(load, Letters(), eos_ids=frozenset())
        except PlanRejected:
            assert held[0]() is not None
        assert held[0]() is None
    finally:
        gc.enable()


def test_an_interrupt_while_loading_ends_the_engine_when_the_load_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant seen to fail: an interrupt that leaves the thread serving nobody."""
    device, loading, go = Failing(Ledger(small_spec())), threading.Event(), threading.Event()

    def load(progress: Any) -> Device:
        loading.set()
        assert real_wait(go, GUARD)
        return device

    real_wait = threading.Event.wait

    def wait(self: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread() and self is not loading and not go.is_set():
            assert real_wait(loading, GUARD)
            raise KeyboardInterrupt
        return real_wait(self, timeout)

    monkeypatch.setattr(threading.Event, "wait", wait)
    real_start, started = threading.Thread.start, []

    def start(self: threading.Thread) -> None:
        started.append(self)
        self._started.wait = lambda timeout=None: real_wait(self._started, timeout)  # type: ignore[attr-defined]
        real_start(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt):
        Engine(load, Letters(), eos_ids=frozenset())
    go.set()
    started[0].join(GUARD)
    assert not started[0].is_alive()
    assert device.closed == 1


# ---------------------------------------------------------------- closing


def test_closing_fails_everything_that_runs_or_waits() -> None:
    """From another thread, twice, with the device released once and nothing accepted after.

    Mutants seen to fail: the inbox forgotten; waiting requests forgotten; `close` that does not wait.
    """
    engine, device = ledger_engine(Gate)
    device.shut()
    streams = [engine.submit([index], params(100)) for index in range(3)]
    device.wait_for_step()
    streams += [engine.submit([index], params(100)) for index in range(6)]
    closers = [threading.Thread(target=engine.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    while not engine.closed:
        time.sleep(0.001)
    with pytest.raises(EngineClosed, match="use the model object again"):
        engine.submit([1])
    device.open()
    for closer in closers:
        closer.join(GUARD)
        assert not closer.is_alive()
    assert device.closed == 1
    for stream in streams:
        with pytest.raises(EngineClosed, match="while the request ran"):
            stream.result()
    engine.close()
    assert device.closed == 1


async def test_closing_wakes_tasks_too() -> None:
    """Mutant seen to fail: `fail` that wakes nobody."""
    engine, device = ledger_engine(Gate)
    device.shut()

    async def iterate() -> None:
        async for _ in engine.submit([1], params(100)):
            pass

    tasks = [asyncio.create_task(iterate()), asyncio.create_task(engine.submit([2]).aresult())]
    await asyncio.to_thread(device.wait_for_step)
    engine.close(wait=False)
    device.open()
    for task in tasks:
        with pytest.raises(EngineClosed):
            await asyncio.wait_for(task, GUARD)
    await asyncio.to_thread(engine.close)


def test_a_request_that_comes_in_while_the_engine_closes_is_told() -> None:
    """It was let in, the engine is closed, and only then does it get into the inbox: behind the last look, or before?

    Mutant seen to fail: `_give_up` that takes no lock.
    """
    engine, _ = ledger_engine()
    real = engine._inbox

    class Slow:
        """An inbox that takes long enough for the engine to end meanwhile, if it may."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def put(self, request: Any) -> None:
            if request is not None:
                engine.close(wait=False)
                engine._thread.join(0.3)
            real.put(request)

    engine._inbox = Slow()  # type: ignore[assignment]
    stream = engine.submit([1], params(2))
    engine._thread.join(GUARD)
    with pytest.raises(EngineClosed):
        assert stream._mailbox.take(lambda: None, whole=True) is not None


EXIT = """
    import os, sys, threading, time
    sys.path.insert(0, {root!r})
    from tests.unit_tests.devices_for_tests import Gate, ledger_engine
    from langchain_accel.errors import EngineClosed
    from langchain_accel.runtime.request import SamplingParams

    endless = SamplingParams(max_tokens=100_000)
    engine, device = ledger_engine(Gate, max_len=200_000, attended_lens=())
    streams = [engine.submit([index], endless) for index in range(9)]
    next(streams[0])
    device.close = lambda: os.write(1, b"released\\n")

    # A lock that another thread holds at a fork stays held in the child.
    engine._door.acquire()
    child = os.fork()
    if child == 0:
        try:
            engine.submit([1])
        except EngineClosed as error:
            assert "forked" in str(error) and engine.closed
            engine.close()
            os._exit(0)
        os._exit(5)
    engine._door.release()
    status = os.waitpid(child, 0)[1]
    assert status == 0, status

    def wait():
        try:
            streams[1].result()
        except EngineClosed:
            os.write(1, b"told\\n")

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    os.write(1, b"leaving\\n")
"""


def test_an_interpreter_exits_with_requests_running_and_a_forked_child_is_told() -> None:
    """The device is released, and nothing hangs; a fork's child gets an error, whatever lock was held.

    Mutants seen to fail: no `atexit`; the process looked at only behind the lock.
    """
    root = str(Path(__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(EXIT).format(root=root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=root,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("leaving\n")
    assert "released\n" in ran.stdout


# ---------------------------------------------------------------- how an answer ends


def test_max_tokens_end_an_answer(full: House) -> None:
    """Mutant seen to fail: one token more."""
    result = full.engine.submit([5, 6], params(7)).result()
    assert (result.finish.reason, result.finish.matched) == ("length", None)
    assert len(result.tokens) == result.finish.completion_tokens == 7


def until(full: House, prompt: list[int], count: int = 30) -> tuple[int, ...]:
    return full.alone(prompt, params(count)).tokens


def test_stop_tokens_end_an_answer_and_are_not_part_of_it(full: House) -> None:
    """Mutants seen to fail: the stop token kept; `stop_token_ids` ignored."""
    prompt = [5, 6, 7, 8]
    tokens = until(full, prompt)
    end = next(index for index in range(3, 30) if tokens[index] not in tokens[:index])
    result = full.engine.submit(prompt, params(30, stop_token_ids=(tokens[end],))).result()
    assert result.tokens == tokens[:end]
    assert (result.finish.reason, result.finish.matched) == ("stop", tokens[end])
    assert result.finish.completion_tokens == end + 1


def test_the_models_end_ends_an_answer_unless_it_is_ignored(full: House) -> None:
    """Mutant seen to fail: `ignore_eos` ignored."""
    certain = {4: 100.0}
    ended = full.engine.submit([5, 6], SamplingParams(max_tokens=9, logit_bias=certain)).result()
    assert (ended.tokens, ended.text, ended.finish.reason, ended.finish.matched) == ((), "", "stop", 4)
    ignored = full.engine.submit([5, 6], params(9, logit_bias=certain)).result()
    assert (ignored.tokens, ignored.finish.reason) == ((4,) * 9, "length")


def test_min_tokens_keep_an_answer_going(full: House) -> None:
    """Past the model's end, stop tokens and stop strings alike.

    Mutants seen to fail: `min_tokens` ignored by the sampler; ignored by the text.
    """
    eager = SamplingParams(max_tokens=9, min_tokens=6, logit_bias={4: 50.0})
    result = full.engine.submit([5, 6], eager).result()
    assert result.finish.completion_tokens == 7
    assert result.finish.matched == 4
    free = full.engine.submit([5, 6], params(20)).result()
    letter = next(character for character in free.text if character.isascii() and character.isprintable())
    stopped = full.engine.submit([5, 6], params(20, stop=(letter,))).result()
    late = full.engine.submit([5, 6], params(20, stop=(letter,), min_tokens=20)).result()
    assert letter not in stopped.text
    assert (stopped.finish.reason, stopped.finish.matched) == ("stop", letter)
    assert late.tokens == free.tokens or late.finish.completion_tokens == 20


def test_stop_strings_end_an_answer_also_across_tokens(full: House, checkpoint: Checkpoint) -> None:
    """Streamed and whole, and nothing of the stop string is ever shown.

    Mutants seen to fail: stop strings not passed on; text held back lost at the end.
    """
    free = full.engine.submit([7, 8, 9], params(40)).result().text
    middle = len(free) // 2
    stop = free[middle : middle + 4]
    expected = free[: free.index(stop)]
    stopping = params(40, stop=(stop, "never to be seen"))
    assert full.engine.submit([7, 8, 9], stopping).result().text == expected
    deltas = list(full.engine.submit([7, 8, 9], stopping))
    assert "".join(delta.text for delta in deltas) == expected
    assert deltas[-1].finish is not None
    assert (deltas[-1].finish.reason, deltas[-1].finish.matched) == ("stop", stop)
    unstopped = full.engine.submit([7, 8, 9], params(40, stop=(free[-2:] + "and more",))).result()
    assert unstopped.text == free


def test_log_probabilities_come_with_every_token(full: House) -> None:
    """Of greedy and drawn answers; the chosen token is the first alternative of a greedy one.

    Mutants seen to fail: `logprobs` after temperature; alternatives unsorted.
    """
    first = []
    for each in (params(6, logprobs=3), params(6, logprobs=3, temperature=2.0, seed=3), params(6, logprobs=0)):
        result = full.engine.submit([9, 10, 11], each).result()
        first.append(result.logprobs[0].top)
        assert [entry.token for entry in result.logprobs] == list(result.tokens)
        for entry in result.logprobs:
            assert len(entry.top) == each.logprobs
            assert [value for _, value in entry.top] == sorted((value for _, value in entry.top), reverse=True)
            if each.temperature == 0 and entry.top:
                assert entry.top[0] == (entry.token, entry.logprob)
            assert entry.logprob <= 0
    assert first[0] == first[1], "the model's own distribution"
    assert full.engine.submit([9, 10, 11], params(6)).result().logprobs == ()


def test_a_seed_repeats_an_answer_and_another_changes_it(full: House) -> None:
    """Mutant seen to fail: the seed dropped."""
    drawn = params(25, temperature=1.5, seed=11)
    streams = [full.engine.submit([5, 9], drawn) for _ in range(3)]
    first, *others = [stream.result().tokens for stream in streams]
    assert others == [first] * 2
    assert full.engine.submit([5, 9], replace(drawn, seed=12)).result().tokens != first
    unseeded = [full.engine.submit([5, 9], replace(drawn, seed=None)).result().tokens for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_a_grammar_shapes_the_answer(full: House) -> None:
    """Beside answers without one; it ends where the grammar does.

    Mutants seen to fail: the constraint not passed on; `finished` not looked at.
    """
    properties = {"n": {"enum": [1, 2]}}
    schema = Grammar.json_schema(
        {"type": "object", "properties": properties, "required": ["n"], "additionalProperties": False}
    )
    free = full.engine.submit([5, 6, 7], params(20))
    shaped = [full.engine.submit([5, 6, index], params(60), schema) for index in range(10, 14)]
    choice = full.engine.submit([5, 6, 7], SamplingParams(max_tokens=20), Grammar.choice(["yes", "no"]))
    for stream in shaped:
        result = stream.result()
        assert json.loads(result.text)["n"] in (1, 2)
        assert result.finish.reason == "stop"
    assert choice.result().text in ("yes", "no")
    assert free.result().tokens == full.alone([5, 6, 7], params(20)).tokens
    with pytest.raises(InvalidRequest, match="regex grammar cannot be used"):
        full.engine.submit([5], params(3), Grammar.regex("("))
    at_rest(full.engine)


def test_a_request_that_forbids_itself_every_token_fails_alone(gated: tuple[Engine, Gate]) -> None:
    """Also where others are in the same step.

    Mutant seen to fail: the sampler's error taken for one of the whole step.
    """
    engine, device = gated
    device.shut()
    first = engine.submit([9], params(9))
    device.wait_for_step()
    prompts = [[index] * 8 for index in range(3)]
    forbidden = {"logit_bias": dict.fromkeys(range(50), float("-inf"))}
    streams = [engine.submit(prompt, params(5, **(forbidden if prompt[0] == 1 else {}))) for prompt in prompts]
    device.open()
    with pytest.raises(InvalidRequest, match="forbid every token"):
        streams[1].result()
    for stream, prompt, count in ((first, [9], 9), (streams[0], prompts[0], 5), (streams[2], prompts[2], 5)):
        assert stream.result().tokens == device.device.answer(prompt, count)  # type: ignore[attr-defined]
    assert (4, 8) in [(call.batch, call.length) for call in device.steps], "they shared a prefill"
    at_rest(engine)
