"""Laws of mailbox and stream: every delta arrives once and in order, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Callable

import pytest

from langchain_accel.errors import DeviceLost, EngineClosed
from langchain_accel.runtime.request import Delta, Finish, TokenLogprob
from langchain_accel.runtime.stream import Completion, Mailbox, Stream, fold
from tests.unit_tests.devices_for_tests import GUARD

pytestmark = pytest.mark.timeout(60)

FINISH = Finish("length", None, 3, 4, 0, 0.0, 0.1, 0.2)
LAST = Delta("d", (4,), (TokenLogprob(4, -0.5),), FINISH)
DELTAS = [Delta("a", (1,)), Delta("", (2,)), Delta("bc", (3,), (TokenLogprob(3, -1.0),)), LAST]
WHOLE = Completion("abcd", (1, 2, 3, 4), (TokenLogprob(3, -1.0), TokenLogprob(4, -0.5)), FINISH)


class Aborted:
    """An abort that can be counted."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def opened() -> tuple[Mailbox, Stream, Aborted]:
    mailbox, aborted = Mailbox(), Aborted()
    return mailbox, Stream(mailbox, aborted), aborted


def waits(mailbox: Mailbox) -> None:
    """Return when a consumer waits at the mailbox."""
    deadline = threading.Event()
    for _ in range(int(GUARD * 200)):
        if mailbox._wake is not None:
            return
        deadline.wait(0.005)
    pytest.fail("nobody waits")


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def joined(thread: threading.Thread) -> None:
    thread.join(GUARD)
    assert not thread.is_alive(), "a consumer was left waiting"


@pytest.mark.parametrize("already", range(5))
async def test_every_way_to_read_gives_all_deltas_in_order(already: int) -> None:
    """Whether they are there before the consumer comes or after.

    Mutants seen to fail: `take` that leaves the deltas in the mailbox; `_accept` that drops all but the last; a wake-up
    that is lost where deltas arrive one by one.
    """

    def feed(mailbox: Mailbox, deltas: list[Delta]) -> None:
        for delta in deltas:
            waits(mailbox)
            mailbox.put(delta)

    def prepared(*, whole: bool) -> tuple[Stream, threading.Thread]:
        mailbox, stream, _ = opened()
        for delta in DELTAS[:already]:
            mailbox.put(delta)
        rest = DELTAS[already:]

        def feed_whole() -> None:
            if rest:
                waits(mailbox)
            for delta in rest:
                mailbox.put(delta)

        thread, _ = in_thread(feed_whole if whole else lambda: feed(mailbox, rest))
        return stream, thread

    stream, thread = prepared(whole=False)
    assert list(stream) == DELTAS
    joined(thread)
    stream, thread = prepared(whole=False)
    assert [delta async for delta in stream] == DELTAS
    await asyncio.to_thread(joined, thread)
    stream, thread = prepared(whole=True)
    assert stream.result() == WHOLE
    joined(thread)
    stream, thread = prepared(whole=True)
    assert await stream.aresult() == WHOLE
    await asyncio.to_thread(joined, thread)


def test_who_waits_for_the_whole_answer_is_woken_once() -> None:
    """A wake-up for every token would cost more than the token.

    Mutant seen to fail: `_take_wake` that looks at nothing.
    """
    mailbox, wakes = Mailbox(), Aborted()
    assert mailbox.take(wakes, whole=True) is None
    for delta in DELTAS[:-1]:
        mailbox.put(delta)
    assert wakes.times == 0
    mailbox.put(LAST)
    assert wakes.times == 1
    assert mailbox.take(wakes, whole=True) == DELTAS


def test_who_iterates_is_woken_for_the_next_delta_and_not_again() -> None:
    """Mutant seen to fail: `_take_wake` that keeps the wake."""
    mailbox, wakes = Mailbox(), Aborted()
    assert mailbox.take(wakes, whole=False) is None
    mailbox.put(DELTAS[0])
    mailbox.put(DELTAS[1])
    assert wakes.times == 1
    assert mailbox.take(wakes, whole=False) == DELTAS[:2]


def test_an_error_comes_after_the_deltas_before_it() -> None:
    """Mutant seen to fail: the error raised at once."""
    mailbox, stream, _ = opened()
    mailbox.put(DELTAS[0])
    mailbox.fail(DeviceLost("gone"))
    assert next(stream) == DELTAS[0]
    with pytest.raises(DeviceLost, match="gone"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


async def test_an_error_ends_every_way_to_read() -> None:
    """Mutant seen to fail: `fail` that wakes nobody."""
    for read in ("next", "result", "anext", "aresult"):
        mailbox, stream, aborted = opened()

        def work(read: str = read, stream: Stream = stream) -> object:
            if read == "next":
                return next(stream)
            if read == "result":
                return stream.result()

            async def later() -> object:
                return await (anext(stream) if read == "anext" else stream.aresult())

            return asyncio.run(later())

        thread, results = in_thread(work)
        await asyncio.to_thread(waits, mailbox)
        mailbox.fail(EngineClosed("closed"))
        await asyncio.to_thread(joined, thread)
        assert isinstance(results[0], EngineClosed)
        assert aborted.times


def test_a_failure_after_the_end_changes_nothing() -> None:
    """Mutant seen to fail: `fail` without its look at `_done`."""
    mailbox, stream, _ = opened()
    for delta in DELTAS:
        mailbox.put(delta)
    mailbox.fail(DeviceLost("too late"))
    assert stream.result() == WHOLE


def test_a_dropped_stream_aborts() -> None:
    """Mutant seen to fail: no `__del__`."""
    _, stream, aborted = opened()
    del stream
    assert aborted.times == 1


def test_close_aborts_and_ends_the_iteration() -> None:
    """Mutants seen to fail: `close` that does not abort; `close` that leaves the stream open."""
    mailbox, stream, aborted = opened()
    mailbox.put(DELTAS[0])
    assert next(stream) == DELTAS[0]
    stream.close()
    stream.close()
    assert aborted.times == 2
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("read", ["anext", "aresult"])
async def test_a_cancelled_task_aborts_whatever_still_holds_the_stream(read: str) -> None:
    """Mutant seen to fail: `_await` that does not close."""
    mailbox, stream, aborted = opened()

    async def consume() -> object:
        return await (anext(stream) if read == "anext" else stream.aresult())

    task = asyncio.create_task(consume())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert aborted.times == 1
    mailbox.put(DELTAS[0])  # the engine may have one on its way
    await asyncio.sleep(0)


def test_an_interrupt_while_waiting_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant seen to fail: `_wait` that does not close."""

    def interrupt(self: object, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    for read in (next, Stream.result):
        _, stream, aborted = opened()
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(threading.Event, "wait", interrupt)
            read(stream)  # type: ignore[operator]
        assert aborted.times == 1


def test_a_loop_that_is_gone_aborts_when_the_next_delta_comes() -> None:
    """And the engine's thread, which puts the delta, does not notice.

    Mutant seen to fail: `RuntimeError` not caught.
    """
    mailbox, stream, aborted = opened()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(stream.aresult())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert aborted.times == 0
    for delta in DELTAS:
        mailbox.put(delta)
    assert aborted.times == 1
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_a_mailbox_keeps_no_stream_alive() -> None:
    """The engine holds the mailbox: a stream that it kept alive would never abort its request.

    Mutant seen to fail: a wake-up that refers to the stream.
    """
    mailbox, stream, aborted = opened()
    task = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert mailbox._wake is not None
    gone = weakref.ref(stream)
    del stream, task
    gc.collect()
    assert gone() is None
    assert aborted.times == 2


def test_a_delta_that_comes_right_after_a_look_wakes_all_the_same() -> None:
    """Mutant seen to fail: `take` that registers its wake-up after it has let go of the lock."""
    mailbox, wakes = Mailbox(), Aborted()
    real = mailbox._lock

    class Crowded:
        """A lock after whose first release somebody else has been in."""

        def __enter__(self) -> None:
            real.acquire()

        def __exit__(self, *_: object) -> None:
            real.release()
            mailbox._lock = real
            mailbox.put(DELTAS[0])

    mailbox._lock = Crowded()  # type: ignore[assignment]
    assert mailbox.take(wakes, whole=False) is None
    assert wakes.times == 1


def test_many_threads_and_one_writer_lose_nothing() -> None:
    """Mutant seen to fail: `put` that replaces what is there."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            mailboxes = [opened() for _ in range(8)]
            readers = [in_thread(lambda stream=stream: list(stream)) for _, stream, _ in mailboxes]
            for number in range(50):
                for mailbox, _, _ in mailboxes:
                    mailbox.put(Delta(str(number), finish=FINISH if number == 49 else None))
            for thread, results in readers:
                joined(thread)
                assert [delta.text for delta in results[0]] == [str(number) for number in range(50)]  # type: ignore[attr-defined]
    finally:
        sys.setswitchinterval(interval)


def test_a_fold_joins_text_tokens_and_logprobs() -> None:
    """Mutant seen to fail: tokens of the last delta only."""
    assert fold(DELTAS) == WHOLE
    with pytest.raises(AssertionError):
        fold(DELTAS[:2])
