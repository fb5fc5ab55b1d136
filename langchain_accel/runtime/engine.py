"""The engine: a thread that owns a device, and the door through which every other thread and event loop comes in."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from langchain_accel.devices.base import Device, Progress, Spec, silent
from langchain_accel.errors import DeviceLost, EngineClosed, InvalidRequest, PromptTooLong, QueueFull
from langchain_accel.runtime.constraints import Grammar, Grammars
from langchain_accel.runtime.drafts import Drafter
from langchain_accel.runtime.loop import Loop, explain
from langchain_accel.runtime.request import Request, SamplingParams
from langchain_accel.runtime.sampling import Sampler
from langchain_accel.runtime.stats import Meter, Stats, snapshot
from langchain_accel.runtime.stream import Mailbox, Stream
from langchain_accel.runtime.text import Text, decoder, showing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GREEDY = SamplingParams()
NO_TOKENS: Mapping[int, str] = MappingProxyType({})


class Engine:
    """Continuous batching over one device.

    The engine's own thread loads the device, warms it up, runs every step and closes it: no other thread ever
    touches the device.
    """

    def __init__(
        self,
        load: Callable[[Progress], Device],
        tokenizer: PreTrainedTokenizerBase | Any,
        *,
        eos_ids: frozenset[int],
        queue_limit: int = 1024,
        progress: Progress = silent,
    ) -> None:
        """Load and warm up; returns when the first request can be served.

        Args:
            load: called on the engine's thread; returns the device.
            tokenizer: turns tokens into text.
            eos_ids: tokens that end an answer.
            queue_limit: requests that may wait for a row; more are refused.
            progress: told how loading goes, on the engine's thread.

        Raises:
            AccelError: whatever `load` or the warm-up raised.
        """
        self.queue_limit = queue_limit
        self._eos_ids = eos_ids
        self._decode = decoder(tokenizer)
        self._process = os.getpid()
        self._door = threading.Lock()  # held while a request comes in, so that none does after the last was failed
        # None wakes the thread up. Not a Condition: a finaliser may close the engine in the middle of any code, that of
        # the engine's thread included, and only this queue's `put` is made for that.
        self._inbox: SimpleQueue[Request | None] = SimpleQueue()
        self._closing = False
        self._loop: Loop
        failure: list[BaseException] = []
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(load, progress, ready, failure), name="accel-engine", daemon=True
        )
        atexit.register(self.close)
        self._thread.start()
        try:
            ready.wait()
        except BaseException:  # an interrupt while loading: the thread ends as soon as the load returns
            self.close(wait=False)
            raise
        if failure:
            self.close()
            raise failure.pop()  # no longer in the list, or the error would hold itself, and what was loaded, in memory
        self._grammars = Grammars(tokenizer, self.spec.vocab_size, eos_ids)

    @property
    def spec(self) -> Spec:
        """What the loaded device serves."""
        return self._loop.spec

    @property
    def closed(self) -> bool:
        """Whether requests are refused: closed, device lost, or forked from another process."""
        return self._closing or self.lost is not None or os.getpid() != self._process

    @property
    def lost(self) -> DeviceLost | None:
        """Why the device is gone, once it is; a device with ranks may notice while nobody uses it."""
        return self._loop.lost or getattr(self._loop.runner.device, "lost", None)

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams = GREEDY,
        grammar: Grammar | None = None,
        visible: Mapping[int, str] = NO_TOKENS,
    ) -> Stream:
        """Queue a prompt and return its answer's stream. Thread-safe; never waits for the device.

        Args:
            prompt: token ids, at least one.
            params: how to choose tokens and when to stop.
            grammar: what the answer must look like.
            visible: special tokens that the answer's text must show, with their text; others are left out.

        Raises:
            PromptTooLong: the prompt leaves no room for an answer.
            InvalidRequest: the prompt, a setting or the grammar is out of range.
            QueueFull: `queue_limit` requests wait already.
            EngineClosed: the engine was closed, or belongs to the process this one was forked from.
            DeviceLost: the device went away.
        """
        self._refuse_if_closed()  # before any lock: in a forked process they may be held by threads that are not there
        request = self._request(prompt, params, grammar, visible)
        stream = Stream(request.mailbox, partial(_abort, request))
        with self._door:
            self._refuse_if_closed()
            queued = self._queued
            if queued - (self.spec.rows - len(self._loop.running)) >= self.queue_limit:
                msg = (
                    f"{queued} requests wait for one of {self.spec.rows} rows and the queue holds "
                    f"{self.queue_limit}: send fewer at once, or raise rows or queue_limit"
                )
                raise QueueFull(msg)
            self._inbox.put(request)
        return stream

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return len(self._loop.running) + self._queued

    @property
    def meter(self) -> Meter:
        """Its running counters, which only its own thread changes."""
        return self._loop.meter

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        loop = self._loop
        return snapshot(loop.meter, loop.runner, running=len(loop.running), queued=self._queued)

    def close(self, *, wait: bool = True) -> None:
        """Fail what still runs with `EngineClosed` and release the device. Idempotent.

        Args:
            wait: return only when the device is released; False returns at once, as a finaliser must.
        """
        if os.getpid() != self._process:
            return  # the thread, and the device, live in the parent
        self._closing = True
        self._inbox.put(None)
        atexit.unregister(self.close)
        if wait and threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def _queued(self) -> int:
        return 0 if self._closing else len(self._loop.waiting) + self._inbox.qsize()

    def _refuse_if_closed(self) -> None:
        if os.getpid() != self._process:
            msg = "this engine belongs to the process this one was forked from: load the model after the fork"
            raise EngineClosed(msg)
        if (lost := self.lost) is not None:
            raise explain(lost)
        if self._closing:
            msg = "the engine is closed: use the model object again, or make a new one, to load it again"
            raise EngineClosed(msg)

    def _request(
        self, prompt: Sequence[int], params: SamplingParams, grammar: Grammar | None, visible: Mapping[int, str]
    ) -> Request:
        tokens = np.array(prompt, np.int64)  # a copy: the caller's own may change
        spec = self.spec
        if tokens.ndim != 1 or len(tokens) == 0:
            msg = f"a prompt is a non-empty sequence of token ids, got shape {tokens.shape}"
            raise InvalidRequest(msg)
        if len(tokens) > spec.max_prompt:
            why = "" if spec.resumes else f" and this device takes a prompt in one piece of at most {spec.chunk}"
            msg = (
                f"the prompt has {len(tokens)} tokens; max_len={spec.max_len} columns hold prompt and answer{why}, "
                f"so the longest prompt is {spec.max_prompt}: shorten it, or load the model with a larger max_len"
            )
            raise PromptTooLong(msg, prompt_tokens=len(tokens), limit=spec.max_prompt)
        if tokens.min() < 0 or tokens.max() >= spec.vocab_size:
            msg = f"token ids run from 0 to {spec.vocab_size - 1}, the prompt has {tokens.min()} to {tokens.max()}"
            raise InvalidRequest(msg)
        room = spec.max_len - len(tokens)
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        eos_ids = frozenset[int]() if params.ignore_eos else self._eos_ids
        return Request(
            prompt=tokens,
            params=params,
            limit=limit,
            sampler=Sampler(
                params,
                tokens.tolist(),
                stop_ids=eos_ids.union(params.stop_token_ids),
                vocab_size=spec.vocab_size,
                constraint=self._grammars.compile(grammar, limit=limit) if grammar is not None else None,
            ),
            text=Text(showing(self._decode, visible), params.stop),
            drafter=Drafter(tokens, limit, spec.drafts - 1) if params.prompt_lookup and spec.drafts > 1 else None,
            mailbox=Mailbox(),
            submitted=perf_counter(),
        )

    def _serve(
        self,
        load: Callable[[Progress], Device],
        progress: Progress,
        ready: threading.Event,
        failure: list[BaseException],
    ) -> None:
        """Body of the engine's thread, from the first byte loaded to the last one released."""
        device: Device | None = None
        try:
            device = load(progress)
            self._loop = Loop(device)
            self._loop.runner.warmup(progress)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for the engine
            failure.append(error)
        ready.set()
        if not failure:
            try:
                while self._work_to_do():
                    self._loop.step()
            except BaseException as error:  # noqa: BLE001 - a bug of ours must reach those who wait, too
                self._loop.lost = DeviceLost(f"the engine's thread failed: {type(error).__name__}: {error}")
                self._loop.lost.__cause__ = error
            finally:
                self._give_up()
        if device is not None:
            with suppress(Exception):  # nobody is left to tell
                device.close()

    def _work_to_do(self) -> bool:
        """Wait until there is a request to serve; False when it is time to end."""
        self._collect(wait=not self._loop.busy and not self.closed)
        return not self.closed

    def _collect(self, *, wait: bool = False) -> None:
        """Move arrivals to the queue; `wait` for one, or for `close`, if there is none."""
        while wait or not self._inbox.empty():
            wait = False
            if request := self._inbox.get():
                self._loop.waiting.append(request)

    def _give_up(self) -> None:
        with self._door:
            self._closing = True
            self._collect()
        lost = self.lost
        self._loop.give_up(
            lambda: explain(lost) if lost else EngineClosed("the engine was closed while the request ran")
        )


def _abort(request: Request) -> None:
    # No lock, no wake-up: an engine with a request to serve is awake, and looks at the flag before its next step.
    request.aborted = True
