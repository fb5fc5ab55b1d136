"""Which replica a request goes to: one that remembers its beginning, or else the one with the least to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from langchain_accel.devices.base import IntArray
from langchain_accel.runtime.rows import MIN_COPY, shared_prefix


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that could serve.

    Attributes:
        load: requests that it runs, or that wait for it.
        shared: tokens at the prompt's beginning that it remembers.
        last: when it was last chosen; any number that grows.
    """

    load: int
    shared: int = 0
    last: int = 0


def choose(candidates: Sequence[Candidate], rows: int) -> int:
    """Return the index of the replica to serve a prompt.

    A remembered prefix saves its prefill, but not for ever: a replica that has half its rows more to do than another
    makes the request wait for longer than that.

    Args:
        candidates: at least one.
        rows: rows of each.
    """
    least = min(candidate.load for candidate in candidates)
    slack = max(1, rows // 2)
    free = [index for index, candidate in enumerate(candidates) if candidate.load <= least + slack]
    longest = max(candidates[index].shared for index in free)
    # Prefixes that differ by a few tokens are worth the same: so a system prompt, once all know it, draws no crowd.
    knowing = [index for index in free if longest - candidates[index].shared < MIN_COPY]
    return min(knowing, key=lambda index: (candidates[index].load, candidates[index].last))


class Prompts:
    """The prompts that a replica was last sent: what its rows remember, or soon will.

    It is kept by whoever routes, who must not ask another thread. An arena of so many rows remembers as many prompts.
    """

    def __init__(self, rows: int) -> None:
        self._prompts: deque[IntArray] = deque(maxlen=rows)

    def add(self, prompt: IntArray) -> None:
        """Note a prompt. It replaces those it goes on from, as it does in a row; else the oldest is forgotten."""
        rest = [known for known in self._prompts if shared_prefix(known, prompt, len(prompt)) < len(known)]
        self._prompts.clear()
        self._prompts.extend([*rest, prompt])

    def shared(self, prompt: Sequence[int] | IntArray) -> int:
        """Return the length of the longest prefix of `prompt` that begins a prompt of these."""
        tokens = np.asarray(prompt, np.int64)
        return max((shared_prefix(known, tokens, len(tokens)) for known in self._prompts), default=0)
