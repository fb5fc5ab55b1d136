"""Who owns which row of the KV arena, and which tokens each row remembers.

A prompt that shares a prefix with a row's tokens need not compute it again: an idle row is resumed in place where
the device can start a prefill past column 0, and a prefix that stands in any row, busy or idle, is copied where the
device can copy. In retrieval chains that is the system prompt and the documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from langchain_accel.runtime.request import Request, State

if TYPE_CHECKING:
    from langchain_accel.devices.base import IntArray, Spec

MIN_COPY = 16
"""Tokens below which a copy costs more than the padding of the prefill that would compute them anyway."""

MIN_WAIT = 32
"""Tokens a request must save to be held back until another request's prefill has computed them."""

NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Lease:
    """A row on offer: `reused` tokens of the prompt are there already, or in `source`, to be copied from."""

    row: int
    reused: int = 0
    source: int | None = None


class Rows:
    """The rows of one arena. Every row is either idle, remembering tokens, or leased to one request."""

    def __init__(self, spec: Spec) -> None:
        self._resumes = spec.resumes
        self._copies = spec.copies and spec.resumes
        # Least recently used first: dicts keep insertion order, and a row that is given back goes to the end.
        self._idle: dict[int, IntArray] = dict.fromkeys(range(spec.rows), NOTHING)
        self._leased: dict[int, Request] = {}

    @property
    def idle(self) -> int:
        """Number of rows without a request."""
        return len(self._idle)

    def offer(self, prompt: IntArray) -> Lease | None:
        """Choose a row for a prompt, without taking it.

        At least one prompt token is always left to compute: its logits are needed.

        Returns:
            None where no row is idle, or where a running prefill will soon have computed a prefix worth waiting for.
        """
        if not self._idle:
            return None
        oldest, limit = next(iter(self._idle)), len(prompt) - 1
        idle = self._idle.items()
        resumed, row = max(((shared_prefix(known, prompt, limit), row) for row, known in idle), key=_longest)
        if not self._copies:
            return Lease(row, resumed)  # the oldest where none shares anything
        copied, source = max(((shared_prefix(known, prompt, limit), row) for row, known in self._known()), key=_longest)
        coming = max((shared_prefix(request.prompt, prompt, limit) for request in self._prefilling()), default=0)
        if coming - max(copied, resumed) >= MIN_WAIT:
            return None
        # Resuming in place overwrites what the row remembers past the shared prefix, so it must not be worth more.
        if resumed >= copied and (row == oldest or 2 * resumed >= len(self._idle[row])):
            return Lease(row, resumed)
        if copied >= MIN_COPY:  # and not from the oldest, which would have been resumed
            return Lease(oldest, copied, source)
        return Lease(oldest, shared_prefix(self._idle[oldest], prompt, limit))

    def take(self, lease: Lease, request: Request) -> None:
        """Give the offered row to a request."""
        del self._idle[lease.row]
        self._leased[lease.row] = request
        request.row, request.computed, request.reused = lease.row, lease.reused, lease.reused

    def give(self, row: int, remembered: IntArray) -> None:
        """Take a row back; `remembered` are the tokens whose keys and values stand in it."""
        del self._leased[row]
        self._idle[row] = remembered if self._resumes else NOTHING

    def tails(self) -> list[tuple[int, int]]:
        """Return every row with its tail, shortest first: the first column whose content nobody will ever read.

        A padding lane runs on a real row, so this is the only column where it may write.
        """
        idle = [(len(known), row) for row, known in self._idle.items()]
        leased = [(request.computed, row) for row, request in self._leased.items()]
        return [(row, tail) for tail, row in sorted(idle + leased)]

    def _known(self) -> Iterator[tuple[int, IntArray]]:
        """Every row with the prompt tokens that stand in it now."""
        for row, known in self._idle.items():
            yield row, known
        for row, request in self._leased.items():
            yield row, request.prompt[: request.computed]

    def _prefilling(self) -> Iterator[Request]:
        """Requests whose prompts will stand in their rows soon."""
        return (request for request in self._leased.values() if request.state is State.PREFILL)


def shared_prefix(known: IntArray, prompt: IntArray, limit: int) -> int:
    """Length of the prefix that `known` and `prompt` share, at most `limit` tokens."""
    length = min(len(known), limit)
    if length == 0 or known[0] != prompt[0]:
        return 0
    differs = known[:length] != prompt[:length]
    first = int(differs.argmax())
    return first if differs[first] else length


def _longest(candidate: tuple[int, int]) -> int:
    return candidate[0]
