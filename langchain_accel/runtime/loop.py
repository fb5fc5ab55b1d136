"""The loop's body: admit, schedule, run, hand out. One thread, no locks, no waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter

import numpy as np

from langchain_accel.devices.base import Device, Logits
from langchain_accel.errors import AccelError, DeviceLost
from langchain_accel.runtime import sampling, scheduler
from langchain_accel.runtime.request import Delta, Finish, FinishReason, Request, State
from langchain_accel.runtime.rows import NOTHING, Lease, Rows
from langchain_accel.runtime.runner import Lane, Runner
from langchain_accel.runtime.sampling import Choice
from langchain_accel.runtime.scheduler import Decode, Prefill, Step
from langchain_accel.runtime.stats import Meter


class Loop:
    """Serves requests on one device, a step at a time.

    Attributes:
        waiting: requests without a row, in order of arrival.
        running: requests with a row, in order of admission.
        lost: why the device is gone, once it is.
    """

    def __init__(self, device: Device) -> None:
        self.runner = Runner(device)
        self.spec = device.spec
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.meter = Meter()
        self.lost: DeviceLost | None = None
        self._rows = Rows(device.spec)
        self._last: Step | None = None

    @property
    def busy(self) -> bool:
        """Whether a step would find something to do."""
        return bool(self.waiting or self.running)

    def step(self) -> None:
        """Run one step: drop what was aborted, admit, schedule, run, hand out.

        A step that fails fails the requests it touched, with the cause; the others go on.
        """
        began = perf_counter()
        self._drop_aborted()
        while seat := scheduler.admit(self.waiting, self._rows):
            self._seat(*seat)
        step = scheduler.next_step(self.running, self._rows, self.spec, self._last)
        self._last = step
        if step is not None:
            try:
                self._advance(step, self._run(step))
            except Exception as error:  # noqa: BLE001 - whatever a step raises, its requests must hear of it
                self._fail([request for request in step.requests if request.state is not State.DONE], error)
        self.meter.busy_seconds += perf_counter() - began

    def _seat(self, request: Request, lease: Lease) -> None:
        """Move a request from the queue to its row."""
        self.waiting.remove(request)
        self._rows.take(lease, request)
        self.running.append(request)
        request.state, request.started = State.PREFILL, perf_counter()
        if lease.source is not None:
            try:
                self.runner.device.copy_row(lease.source, lease.row, lease.reused)
            except Exception as error:  # noqa: BLE001 - as in a step
                self._fail([request], error)

    def _run(self, step: Step) -> Logits:
        tails = self._rows.tails
        if isinstance(step, Decode):
            lanes = [
                Lane(request.row, np.array(request.output[-1:], np.int64), request.computed)
                for request in step.requests
            ]
            return self.runner.decode(lanes, step.batch, tails)
        lanes = [
            Lane(request.row, request.prompt[request.computed : request.computed + step.length], request.computed)
            for request in step.requests
        ]
        return self.runner.prefill(lanes, step.batch, step.length, tails)

    def _advance(self, step: Step, logits: Logits) -> None:
        """Account for a step that succeeded, and choose a token for every request whose prompt is complete."""
        ready: list[Request] = list(step.requests)
        if isinstance(step, Prefill):
            for request in step.requests:
                request.computed += min(request.remaining, step.length)
            complete = [index for index, request in enumerate(step.requests) if not request.remaining]
            ready = [step.requests[index] for index in complete]
            logits = logits[complete]
        else:
            for request in ready:
                request.computed += 1
        choices = sampling.choose(logits, [request.sampler for request in ready])
        now = perf_counter()
        for request, choice in zip(ready, choices, strict=True):
            if isinstance(choice, Choice):
                self._emit(request, choice, now)
            else:
                self._fail([request], choice)
        self.meter.chosen_tokens += len(ready)

    def _emit(self, request: Request, choice: Choice, now: float) -> None:
        """Add one token to an answer, hand out the text that is safe to show, and finish where it ends."""
        if request.state is State.PREFILL:
            request.state, request.first_token = State.DECODE, now
        sampler, text, token = request.sampler, request.text, choice.token
        request.output.append(token)
        if token in sampler.stop_ids:
            self._finish(request, Delta(""), "stop", token, now)
            return
        shown = text.push(token, stops=len(request.output) >= request.params.min_tokens)
        delta = Delta(shown, (token,), () if choice.logprob is None else (choice.logprob,))
        if text.stopped is not None:
            self._finish(request, delta, "stop", text.stopped, now)
        elif sampler.finished:
            self._finish(request, delta, "stop", None, now)
        elif len(request.output) >= request.limit:
            self._finish(request, delta, "length", None, now)
        else:
            request.mailbox.put(delta)

    def _finish(
        self, request: Request, delta: Delta, reason: FinishReason, matched: str | int | None, now: float
    ) -> None:
        """Take an answered request off its row, then hand out its last delta."""
        finish = Finish(
            reason=reason,
            matched=matched,
            prompt_tokens=len(request.prompt),
            completion_tokens=len(request.output),
            reused_tokens=request.reused,
            queued_seconds=request.started - request.submitted,
            first_token_seconds=request.first_token - request.submitted,
            seconds=now - request.submitted,
        )
        last = replace(delta, text=delta.text + request.text.finish(), finish=finish)
        self.meter.finish(finish)
        self._release(request)
        request.mailbox.put(last)

    def _release(self, request: Request, *, intact: bool = True) -> None:
        """Take a request off its row; `intact` says whether what the row holds is known."""
        self.running.remove(request)
        request.state = State.DONE
        self._rows.give(request.row, request.remembered if intact else NOTHING)
        if not (self.spec.resumes and intact):
            with suppress(Exception):  # the row's next prefill overwrites it; a lost device fails its next step, too
                self.runner.device.forget(request.row)

    def _drop_aborted(self) -> None:
        for request in [request for request in (*self.running, *self.waiting) if request.aborted]:
            if request.state is State.WAITING:
                self.waiting.remove(request)
                request.state = State.DONE
            else:
                self._release(request)
            # A stream can be closed in one thread while another waits for it.
            request.mailbox.fail(AccelError("the stream of this answer was closed before the answer was complete"))
            self.meter.aborted += 1

    def _fail(self, requests: Sequence[Request], cause: Exception) -> None:
        """Fail the requests a step touched; the engine goes on with the others unless the device itself is lost."""
        if isinstance(cause, DeviceLost):
            self.lost = cause
        for request in requests:
            self._release(request, intact=False)
            request.mailbox.fail(explain(cause))
            self.meter.failed += 1

    def give_up(self, error: Callable[[], AccelError]) -> None:
        """Fail everything that runs or waits."""
        for request in [*self.running, *self.waiting]:
            request.state = State.DONE
            request.mailbox.fail(error())
        self.running.clear()
        self.waiting.clear()


def explain(cause: BaseException) -> AccelError:
    """Make the error one consumer meets; each gets its own, since a raised error belongs to its thread."""
    if isinstance(cause, AccelError):
        error: AccelError = type(cause).__new__(type(cause), *cause.args)  # not `__init__`, which may want more
    else:
        error = DeviceLost(f"the step that computed this answer failed: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
