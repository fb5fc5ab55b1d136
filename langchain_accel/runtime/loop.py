"""The loop's body: admit, schedule, run, hand out. One thread, no locks, no waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter

import numpy as np

from langchain_accel.devices.base import Device, Logits
from langchain_accel.errors import AccelError, DeviceLost, StepFailed
from langchain_accel.runtime import sampling, scheduler
from langchain_accel.runtime.request import Delta, Finish, FinishReason, Request, State
from langchain_accel.runtime.rows import NOTHING, Lease, Rows
from langchain_accel.runtime.runner import Lane, Runner
from langchain_accel.runtime.sampling import Choice
from langchain_accel.runtime.scheduler import Prefill, Step, Verify
from langchain_accel.runtime.stats import Meter

MIN_DICTATED = 3
"""Tokens a grammar must dictate for a prefill of their own to be cheaper than the decode steps they would share."""


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
        length = step.length if isinstance(step, Prefill) else 1
        upcoming = [request.upcoming(length) for request in step.requests]
        if isinstance(step, Verify):
            drafts = [request.draft[: step.length - 1] for request in step.requests]
            upcoming = [np.concatenate(tokens) for tokens in zip(upcoming, drafts, strict=True)]
        rows = zip(step.requests, upcoming, strict=True)
        lanes = [Lane(request.row, tokens, request.computed) for request, tokens in rows]
        if isinstance(step, Prefill):
            return self.runner.prefill(lanes, step.batch, step.length, self._rows.tails)
        if isinstance(step, Verify):
            return self.runner.verify(lanes, step.batch, step.length, self._rows.tails)
        return self.runner.decode(lanes, step.batch, self._rows.tails)

    def _advance(self, step: Step, logits: Logits) -> None:
        """Account for a step that succeeded, and choose tokens for every request whose prompt is complete."""
        ready: list[Request] = list(step.requests)
        if isinstance(step, Verify):
            self._advance_drafted(step, logits)
        elif isinstance(step, Prefill):
            for request in step.requests:
                request.computed += min(request.remaining, step.length)
            complete = [index for index, request in enumerate(step.requests) if not request.remaining]
            ready = [step.requests[index] for index in complete]
            self._choose(ready, logits[complete])
        else:
            for request in ready:
                request.computed += 1
            self._choose(ready, logits)
        for request in ready:
            request.redraft()

    def _advance_drafted(self, step: Verify, logits: Logits) -> None:
        """Choose token after token of each answer, for as long as its draft said what was chosen."""
        drafts = [request.draft[: step.length - 1].tolist() for request in step.requests]
        accepted = [0] * len(drafts)
        lanes = list(range(len(drafts)))
        for place in range(step.length):
            for lane in lanes:
                step.requests[lane].computed += 1
            self._choose([step.requests[lane] for lane in lanes], logits[lanes, place])
            lanes = [lane for lane in lanes if _follows(step.requests[lane], drafts[lane][place : place + 1])]
            for lane in lanes:
                accepted[lane] += 1
            if not lanes:
                break
        for request, draft, right in zip(step.requests, drafts, accepted, strict=True):
            self.meter.drafted_tokens += len(draft)
            self.meter.accepted_tokens += right
            if draft and request.drafter is not None:
                request.drafter.learn(len(draft), right, len(request.output))

    def _choose(self, ready: Sequence[Request], logits: Logits) -> None:
        """Choose and hand out one token for each request, from its row of `logits`."""
        choices = sampling.choose(logits, [request.sampler for request in ready])
        now = perf_counter()
        for request, choice in zip(ready, choices, strict=True):
            try:
                self._emit(request, choice, now)
            except AccelError as error:  # noqa: PERF203 - one request's error is its own
                self._fail([request], error)

    def _emit(self, request: Request, choice: Choice | AccelError, now: float) -> None:
        """Add the chosen token to an answer, and those its grammar dictates next; hand out text; finish at the end.

        Dictated tokens need no logits: one prefill puts them all into the KV cache, instead of a decode step for each.
        """
        if isinstance(choice, AccelError):
            raise choice
        request.first_token = request.first_token or now
        tokens = [choice.token]
        shown, ending = _append(request, choice.token)
        dictated = request.sampler.forced() if ending is None and self.spec.resumes else []
        if len(dictated) >= MIN_DICTATED:
            for token in dictated:
                request.sampler.accept(token)
                more, ending = _append(request, token)
                shown += more
                tokens.append(token)
                if ending:
                    break
        self.meter.output_tokens += len(tokens)
        self.meter.dictated_tokens += len(tokens) - 1
        request.state = State.DECODE if request.remaining == 1 else State.PREFILL
        stop_ids = request.sampler.stop_ids
        visible = tuple(token for token in tokens if token not in stop_ids)
        delta = Delta(shown, visible, (choice.logprob,) if choice.logprob and visible else ())
        if ending:
            self._finish(request, delta, *ending, now)
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
            self.meter.aborted += 1  # first: whoever sees the row free sees it counted
            if request.state is State.WAITING:
                self.waiting.remove(request)
                request.state = State.DONE
            else:
                self._release(request)
            # A stream can be closed in one thread while another waits for it.
            request.mailbox.fail(AccelError("the stream of this answer was closed before the answer was complete"))

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


def _follows(request: Request, drafted: list[int]) -> bool:
    """Whether an answer goes on, and with the drafted token, whose keys and values stand in its row already."""
    return request.state is State.DECODE and drafted == request.output[-1:]


def _append(request: Request, token: int) -> tuple[str, tuple[FinishReason, str | int | None] | None]:
    """Add one token to an answer; return the text it shows and, where it ends the answer, the reason and the match."""
    request.output.append(token)
    sampler, text = request.sampler, request.text
    if token in sampler.stop_ids:
        return "", ("stop", token)
    shown = text.push(token, stops=len(request.output) >= request.params.min_tokens)
    if text.stopped is not None:
        return shown, ("stop", text.stopped)
    if sampler.finished:
        return shown, ("length" if sampler.closed_early else "stop", None)
    if len(request.output) >= request.limit:
        return shown, ("length", None)
    return shown, None


def explain(cause: BaseException) -> AccelError:
    """Make the error one consumer meets; each gets its own, since a raised error belongs to its thread."""
    if isinstance(cause, AccelError):
        error: AccelError = type(cause).__new__(type(cause), *cause.args)  # not `__init__`, which may want more
    else:
        error = StepFailed(f"the step that computed this answer failed: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
