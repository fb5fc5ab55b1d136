"""One answer under one grammar: llguidance's matcher, and the tokens that are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from langchain_accel.devices.base import Logits
from langchain_accel.errors import AccelError
from langchain_accel.runtime.closing import Closer, Way

STEPS, SEARCHES, SECONDS = 256, 3, 0.25
"""Tokens a walk may take beyond twice the way known before; searches that may fail in an answer, and how long one."""


@dataclass(slots=True)
class Budget:
    """What a limited answer may still have, and a way to close it within that.

    The law, by induction: `way` leads from where the answer stands to an end of the grammar, and `len(way) <= left`.
    A token is admitted only with a way after it that keeps the law, and the next token of `way` always is. There is
    no rule for when to look: every token is checked, because that costs less than its mask (see `Closer.follow`).

    Attributes:
        closer: finds ways to close.
        left: tokens left.
        way: tokens that close the answer from where it stands, at most `left`.
        literals: see `Closer.literals`.
        tried: the token admitted last, and the way after it.
        searches: searches that may still fail.
    """

    closer: Closer
    left: int
    way: Way
    literals: Sequence[Way]
    tried: tuple[int, Way] = (-1, ())
    searches: int = SEARCHES

    @property
    def next(self) -> int:
        """The next token of the way, the end of sequence where it is at its end."""
        return self.way[0] if self.way else self.closer.end

    def after(self, matcher: Any, token: int) -> Way | None:
        """Return a way that closes the answer after `token`, or `None`."""
        if self.way[:1] == (token,):
            return self.way[1:]
        if token == self.tried[0]:
            return self.tried[1]
        room = self.left - 1
        if room < 0:
            return None
        way = self.closer.follow(matcher, token, self.way, room)
        if way is None:
            there = matcher.deep_copy()
            way = self.close(there, room) if there.consume_token(token) else None
        if way is not None:
            self.tried = token, way
        return way

    def close(self, matcher: Any, room: int) -> Way | None:
        """Return tokens that close the answer from another place, or `None` where we know none within `room`."""
        known = self.way
        way = self.closer.greedy(matcher, min(room, STEPS + 2 * len(known)), known)
        # Near the end the walk fails for lack of room, and a search would hardly find any.
        if way is None and self.searches and room > 2 * len(known) + 16:
            way = self.closer.search(matcher, room, self.literals, SECONDS)
            self.searches -= way is None
        return way


class Matcher:
    """A `Constraint` (see there) that asks llguidance.

    Args:
        matcher: an `LLMatcher` of its own, at the beginning of its grammar.
        closer: of its tokenizer.
        vocab_size: width of the logits.
        width: bits of llguidance's mask, at least `vocab_size`.
        budget: how long the answer may be, if it must not be cut.
    """

    def __init__(self, matcher: Any, closer: Closer, vocab_size: int, width: int, budget: Budget | None) -> None:
        self._matcher = matcher
        self._closer = closer
        self._vocab_size = vocab_size
        self._bits: npt.NDArray[np.int32] = np.zeros((width + 31) // 32, dtype=np.int32)
        self._budget = budget
        self._given_up = False  # llguidance has; what is known of the way is all that is left
        self.closed_early = False

    @property
    def finished(self) -> bool:
        """Whether nothing but an end of sequence may follow."""
        if self._given_up and self._budget is not None:
            return not self._budget.way
        return bool(self._matcher.is_stopped())

    def mask(self, logits: Logits) -> None:
        """Set the logits of forbidden tokens to minus infinity, in place."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._budget is None:
            self._require_sound("the grammar went beyond llguidance's limits")
        elif self._matcher.is_error():
            self._given_up = self.closed_early = True
            self._bits[:] = 0
            self._bits.view(np.uint8)[self._budget.next // 8] = 1 << self._budget.next % 8
        allowed = np.unpackbits(self._bits.view(np.uint8), count=self._vocab_size, bitorder="little")
        np.copyto(logits, -np.inf, where=allowed == 0)

    def admits(self, token: int) -> bool:
        """Whether the answer can be closed within its limit after `token`."""
        admitted = self._budget is None or self._budget.after(self._matcher, token) is not None
        self.closed_early |= not admitted
        return admitted

    def closing(self) -> int | None:
        """Return the next token of the known way to close, `None` without a limit."""
        return None if self._budget is None else self._budget.next

    def accept(self, token: int) -> None:
        """Move on by `token`."""
        budget = self._budget
        way = () if budget is None else budget.after(self._matcher, token)
        if not self._given_up and not self._matcher.consume_token(token):
            self._require_sound(f"token {token} does not follow the grammar")
        if budget is None:
            return
        if way is None:
            msg = f"after token {token} the answer cannot be closed within the {budget.left - 1} tokens left"
            raise AccelError(msg)
        budget.left, budget.way, budget.tried = budget.left - 1, way, (-1, ())

    def forced(self) -> list[int]:
        """Return the tokens that must follow, within the limit."""
        budget = self._budget
        if self.finished or self._given_up:
            return []
        tokens = self._closer.forced(self._matcher)
        if budget is None or not tokens or budget.way[: len(tokens)] == tuple(tokens):
            return tokens
        there = self._matcher.deep_copy()
        way = budget.close(there, budget.left - len(tokens)) if there.consume_tokens(tokens) else None
        if way is None:  # the known way writes the same text with fewer tokens
            return []
        budget.way, budget.tried = (*tokens, *way), (-1, ())
        return tokens

    def _require_sound(self, what: str) -> None:
        """Raise where llguidance has given up; it stays in that state, so `finished` would be misread."""
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().split("\n", 1)[0]
            msg = f"{what}: {reason}"
            raise AccelError(msg)
