"""The pure choice of what happens next: no clock, no device, no side effect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from langchain_accel.runtime.request import Request, State
from langchain_accel.runtime.shapes import fit_decode, fit_prefill, fit_verify

if TYPE_CHECKING:
    from langchain_accel.devices.base import Spec
    from langchain_accel.runtime.rows import Lease, Rows

LOOK_AHEAD = 16
"""Waiting requests considered for a free row when those before them are better off waiting for a shared prefix."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute the next chunk of these prompts, in the declared shape `(batch, length)`."""

    requests: Sequence[Request]
    batch: int
    length: int


@dataclass(frozen=True, slots=True)
class Decode:
    """Compute the next token of these requests, in the declared batch."""

    requests: Sequence[Request]
    batch: int


@dataclass(frozen=True, slots=True)
class Verify:
    """Compute the next token of these requests and check their drafts, in the declared shape `(batch, length)`."""

    requests: Sequence[Request]
    batch: int
    length: int


Step = Prefill | Decode | Verify


def admit(waiting: Iterable[Request], rows: Rows) -> tuple[Request, Lease] | None:
    """Choose the next request that gets a row: the first in order of arrival for which one is on offer."""
    for request in islice(waiting, LOOK_AHEAD):
        if lease := rows.offer(request.prompt):
            return request, lease
    return None


def next_step(running: Sequence[Request], rows: Rows, spec: Spec, last: Step | None) -> Step | None:
    """Choose the next step: prefill and decode take turns.

    A long prompt thus holds running answers up for one declared prefill shape at a time, and running answers hold a
    new prompt up for one decode step at a time.
    """
    if isinstance(last, Prefill):
        return _decode(running, spec) or _prefill(running, rows, spec)
    return _prefill(running, rows, spec) or _decode(running, spec)


def _prefill(running: Sequence[Request], rows: Rows, spec: Spec) -> Prefill | None:
    requests = [request for request in running if request.state is State.PREFILL]
    if not requests:
        return None
    # Without `resumes` a padding lane must start at column 0, so only idle rows, which remember nothing, can take one.
    spare = spec.rows if spec.resumes else rows.idle
    fit = fit_prefill(spec, [request.remaining for request in requests], spare)
    return Prefill(requests[: fit.count], fit.batch, fit.length)


def _decode(running: Sequence[Request], spec: Spec) -> Decode | Verify | None:
    requests = [request for request in running if request.state is State.DECODE]
    if not requests:
        return None
    batch = fit_decode(spec, len(requests))
    length = fit_verify(spec, [1 + len(request.draft) for request in requests])
    return Decode(requests, batch) if length is None else Verify(requests, batch, length)
