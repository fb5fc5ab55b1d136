"""Laws of batches: answered together, returned in order, and left together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from langchain_accel.errors import PromptTooLong, QueueFull, StepFailed
from langchain_accel.runtime.batch import acomplete, complete
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import SamplingParams
from tests.unit_tests.devices_for_tests import Failing, Gate, Ledger, ledger_engine

pytestmark = pytest.mark.timeout(60)


def jobs(count: int, tokens: int = 6) -> list[tuple[list[int], SamplingParams]]:
    return [([index % 50, 7, index // 50], SamplingParams(max_tokens=tokens)) for index in range(count)]


def answers(device: Ledger, count: int, tokens: int = 6) -> list[tuple[int, ...]]:
    return [device.answer(prompt, tokens) for prompt, _ in jobs(count, tokens)]


@pytest.fixture(scope="module")
def small_queue() -> Iterator[tuple[Engine, Ledger]]:
    engine, device = ledger_engine(queue_limit=3)
    yield engine, device
    engine.close()


def test_a_batch_longer_than_the_queue_is_answered_in_order(small_queue: tuple[Engine, Ledger]) -> None:
    """Mutants seen to fail: `QueueFull` not caught; the newest answer awaited first; the refused job skipped."""
    engine, device = small_queue
    assert [completion.tokens for completion in complete(engine, jobs(120))] == answers(device, 120)
    assert complete(engine, []) == []


async def test_a_batch_in_an_event_loop_is_answered_in_order(small_queue: tuple[Engine, Ledger]) -> None:
    """Mutant seen to fail: `aresult` not awaited in order."""
    engine, device = small_queue
    assert [completion.tokens for completion in await acomplete(engine, jobs(60))] == answers(device, 60)


def test_a_batch_that_finds_the_queue_full_from_its_start_says_so() -> None:
    """It has no answer of its own to wait for.

    Mutant seen to fail: `popleft` of an empty deque.
    """
    engine, device = ledger_engine(Gate, rows=1, decode_shapes=(1,), prefill_shapes=((1, 8),), queue_limit=1)
    try:
        device.shut()
        others = [engine.submit([1], SamplingParams(max_tokens=2))]
        device.wait_for_step()
        others.append(engine.submit([2], SamplingParams(max_tokens=2)))
        with pytest.raises(QueueFull):
            complete(engine, jobs(2))
        device.open()
        assert [stream.result().finish.completion_tokens for stream in others] == [2, 2]
    finally:
        device.open()
        engine.close()


def test_one_prompt_that_is_refused_aborts_the_whole_batch() -> None:
    """Mutant seen to fail: `submitted` without its `finally`."""
    engine, device = ledger_engine(Gate)
    try:
        device.shut()
        with pytest.raises(PromptTooLong):
            complete(engine, [*jobs(6, 100), ([1] * 128, SamplingParams())])
        device.open()
        engine.submit([1], SamplingParams(max_tokens=1)).result()
        assert engine.stats().aborted == 6
    finally:
        device.open()
        engine.close()


def test_one_answer_that_fails_aborts_the_others() -> None:
    """Mutant seen to fail: `complete` without `closing`."""
    engine, device = ledger_engine(Failing)
    try:
        device.shut()
        device.fail_once(RuntimeError("broken"), "prefill")

        def submitted() -> Iterator[tuple[list[int], SamplingParams]]:
            yield from jobs(12, 100)
            device.let_one_pass()

        with pytest.raises(StepFailed, match="broken"):
            complete(engine, submitted())
        device.open()
        engine.submit([1], SamplingParams(max_tokens=1)).result()
        stats = engine.stats()
        assert (stats.running, stats.queued) == (0, 0)
        assert stats.failed >= 1
        assert stats.failed + stats.aborted == 12
    finally:
        device.open()
        engine.close()


async def test_cancelling_a_batch_aborts_every_prompt() -> None:
    """Mutant seen to fail: `acomplete` without `closing`."""
    engine, device = ledger_engine(Gate)
    try:
        device.shut()
        task = asyncio.create_task(acomplete(engine, jobs(10, 100)))
        await asyncio.to_thread(device.wait_for_step)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        device.open()
        await engine.submit([1], SamplingParams(max_tokens=1)).aresult()
        assert engine.stats().aborted == 10
    finally:
        device.open()
        engine.close()
