"""The way an answer travels from the engine's thread to whoever asked, in threads and in event loops alike."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_accel.runtime.request import Delta, Finish, TokenLogprob


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer: the fold of its deltas."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish: Finish


class Mailbox:
    """Deltas of one request, put by the engine's thread and taken by one consumer.

    The consumer is woken for every delta only while it iterates; one that waits for the whole answer is woken once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deltas: deque[Delta] = deque()
        self._error: BaseException | None = None
        self._done = False
        self._wake: Callable[[], None] | None = None
        self._wake_at_end_only = False

    def put(self, delta: Delta) -> None:
        """Add one delta; one that carries a finish closes the mailbox."""
        with self._lock:
            self._deltas.append(delta)
            self._done = self._done or delta.finish is not None
            wake = self._take_wake()
        if wake is not None:
            wake()

    def fail(self, error: BaseException) -> None:
        """Close the mailbox with an error, which the consumer meets after the deltas already put."""
        with self._lock:
            if self._done:
                return
            self._error, self._done = error, True
            wake = self._take_wake()
        if wake is not None:
            wake()

    def take(self, wake: Callable[[], None], *, whole: bool) -> list[Delta] | None:
        """Return what is there, or arrange for `wake` to be called (once, from the engine's thread) and return None.

        Args:
            wake: called without the lock when there is something to take.
            whole: only return, and only wake, when the answer is complete.

        Returns:
            Deltas in order; an empty list after the last one has been taken.

        Raises:
            BaseException: the error the request failed with, once all earlier deltas were taken.
        """
        with self._lock:
            if self._done if whole else (self._deltas or self._done):
                if self._error is not None and (whole or not self._deltas):
                    raise self._error
                deltas = list(self._deltas)
                self._deltas.clear()
                return deltas
            self._wake, self._wake_at_end_only = wake, whole
            return None

    def _take_wake(self) -> Callable[[], None] | None:
        if self._wake_at_end_only and not self._done:
            return None
        wake, self._wake = self._wake, None
        return wake


class Stream:
    """The answer to one request, as it is made. One consumer, sync or async.

    Leaving early (`close`, an interrupt or a cancelled task while it waits, or dropping the last reference) aborts the
    request: its row is free again within one step.
    """

    def __init__(self, mailbox: Mailbox, abort: Callable[[], None]) -> None:
        self._mailbox = mailbox
        self._abort = abort
        self._ready: deque[Delta] = deque()
        self._ended = False

    def __iter__(self) -> Iterator[Delta]:
        """Iterate over the deltas."""
        return self

    def __next__(self) -> Delta:
        """Wait for the next delta.

        Raises:
            StepFailed: the step that computed it failed.
            DeviceLost: the device went away.
            EngineClosed: the engine was closed meanwhile.
            AccelError: the stream was closed meanwhile.
        """
        if not self._ready and not self._ended:
            self._accept(self._wait(whole=False))
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def __aiter__(self) -> AsyncIterator[Delta]:
        """Iterate over the deltas in an event loop."""
        return self

    async def __anext__(self) -> Delta:
        """Wait for the next delta without blocking the event loop; errors as in `__next__`."""
        if not self._ready and not self._ended:
            self._accept(await self._await(whole=False))
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.popleft()

    def result(self) -> Completion:
        """Wait for the whole answer; errors as in `__next__`."""
        deltas = self._wait(whole=True)
        self._ended = True
        return fold([*self._ready, *deltas])

    async def aresult(self) -> Completion:
        """Await the whole answer; errors as in `__next__`."""
        deltas = await self._await(whole=True)
        self._ended = True
        return fold([*self._ready, *deltas])

    def close(self) -> None:
        """Abort the request if it still runs. Idempotent; callable from any thread."""
        self._ended = True
        self._abort()

    def __del__(self) -> None:
        """A stream nobody holds any more has nobody to answer."""
        self._abort()

    def _accept(self, deltas: list[Delta]) -> None:
        self._ready.extend(deltas)
        self._ended = not deltas or deltas[-1].finish is not None

    def _wait(self, *, whole: bool) -> list[Delta]:
        woken = threading.Event()
        try:
            while (deltas := self._mailbox.take(woken.set, whole=whole)) is None:
                woken.wait()
                woken.clear()
        except BaseException:
            self.close()
            raise
        return deltas

    async def _await(self, *, whole: bool) -> list[Delta]:
        loop, woken, abort = asyncio.get_running_loop(), asyncio.Event(), self._abort

        def wake() -> None:  # the mailbox keeps it, so it must not keep the stream
            try:
                loop.call_soon_threadsafe(woken.set)
            except RuntimeError:  # the loop is closed: its tasks are gone, and so is this consumer
                abort()

        try:
            while (deltas := self._mailbox.take(wake, whole=whole)) is None:
                await woken.wait()
                woken.clear()
        except BaseException:
            self.close()
            raise
        return deltas


def fold(deltas: Iterable[Delta]) -> Completion:
    """Join deltas, the last of which carries the finish, into one completion."""
    deltas = list(deltas)
    finish = deltas[-1].finish
    assert finish is not None, "folding an answer that has not finished"
    return Completion(
        text="".join(delta.text for delta in deltas),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        finish=finish,
    )
