"""Drafts by prompt lookup: how an answer may go on, read off the prompt and the answer so far.

An answer that quotes its context repeats runs of tokens. Where its last tokens stand earlier, what followed them there
is a guess at what follows now, and one `verify` step checks the whole guess (Saxena 2023, prompt lookup decoding;
transformers' `prompt_lookup_num_tokens`). Tokens are chosen one by one all the same, so that drafts change the number
of steps and never the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_accel.devices.base import IntArray

SHORTEST, LONGEST = 3, 12
"""Tokens that must agree for a draft; tokens beyond which places are equally good."""

FIRST = 3
"""Tokens of a request's first draft; each one that is wholly right may be followed by one twice as long."""

PAUSE = 31
"""Tokens for which a request whose drafts are always wrong stops drafting: what they cost is soon little."""

NO_DRAFT = np.empty(0, np.int64)


def lookup(known: IntArray, most: int) -> IntArray:
    """Return at most `most` tokens that followed the last tokens of `known` where those stand earlier, or none.

    The place with the longest agreement counts; of equally long ones the latest that `most` tokens follow, else the
    first.
    """
    ends = np.flatnonzero(known[:-1] == known[-1])
    agreed = 1
    while len(ends) and agreed < LONGEST:
        longer = ends[ends >= agreed]
        longer = longer[known[longer - agreed] == known[-1 - agreed]]
        if not len(longer):
            break
        ends, agreed = longer, agreed + 1
    if not len(ends) or agreed < SHORTEST:
        return NO_DRAFT
    followed = ends[ends + most < len(known)]
    place = int(followed[-1] if len(followed) else ends[0]) + 1
    return known[place : place + most]


class Drafter:
    """Drafts for one request, longer while they are right and rarer while they are wrong.

    Args:
        prompt: `[P]` token ids.
        limit: most tokens of the answer.
        most: longest draft in tokens.
    """

    def __init__(self, prompt: IntArray, limit: int, most: int) -> None:
        self._known = np.concatenate([prompt, np.zeros(limit, np.int64)])
        self._prompt = len(prompt)
        self._size = len(prompt)
        self._most = most
        self._length = min(FIRST, most)
        self._pause = 0
        self._silent_until = 0

    def propose(self, output: Sequence[int]) -> IntArray:
        """Return how the answer `output` may go on; nothing during a pause, or where it must end anyway."""
        room = min(self._length, len(self._known) - self._prompt - len(output) - 1)
        if room < 1 or len(output) < self._silent_until:
            return NO_DRAFT
        end = self._prompt + len(output)
        self._known[self._size : end] = output[self._size - self._prompt :]
        self._size = end
        return lookup(self._known[:end], room)

    def learn(self, proposed: int, accepted: int, answered: int) -> None:
        """Adapt to a draft of `proposed` tokens, of which the first `accepted` were right.

        Args:
            proposed: tokens that were checked.
            accepted: of those, tokens that the answer went on with.
            answered: tokens of the answer now.
        """
        if accepted == proposed:
            self._length = min(2 * self._length + 1, self._most)
        elif 2 * accepted < proposed:
            self._length = min(FIRST, self._most)
        self._pause = 0 if accepted else min(2 * self._pause + 1, PAUSE)
        self._silent_until = answered + self._pause
