"""What every peer answers: the same token ids, greedily, past every end of sequence."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Tokens = list[int]

FIRST, LAST = 16, 4000
"""Ids are drawn from here: ordinary tokens in the vocabulary of every model that `models` writes."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Calls that follow each other; the prompts of one call are asked at the same time.

    Attributes:
        name: its letter.
        about: what it stands for.
        calls: the prompts of each call, as token ids.
        new: tokens of each answer.
        shared: tokens that all prompts have in common at their beginning.
    """

    name: str
    about: str
    calls: tuple[tuple[Tokens, ...], ...]
    new: int
    shared: int = 0

    @property
    def prompts(self) -> int:
        """Prompts of all calls."""
        return sum(map(len, self.calls))

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(prompt) for call in self.calls for prompt in call)

    @property
    def new_tokens(self) -> int:
        """Tokens of all answers."""
        return self.prompts * self.new

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and its answer."""
        return max(len(prompt) for call in self.calls for prompt in call) + self.new


def _passages(draw: Callable[[int], Tokens]) -> Workload:
    return Workload("a", "a prompt of 1,024 tokens, 128 new", ((draw(1024),),), new=128)


def _latency(draw: Callable[[int], Tokens]) -> Workload:
    return Workload("b", "a prompt of 7 tokens, 100 new", ((draw(7),),), new=100)


def _batch(draw: Callable[[int], Tokens]) -> Workload:
    lengths = random.Random(0).sample(range(304, 688, 24), 16)  # noqa: S311 - unequal, 484 on average
    prompts = tuple(draw(length) for length in lengths)
    return Workload("c", "16 unequal prompts of about 484 tokens at once, 64 new each", (prompts,), new=64)


def _questions(draw: Callable[[int], Tokens]) -> Workload:
    context = draw(1500)
    calls = tuple((context + draw(20),) for _ in range(8))
    about = "8 questions of 20 tokens over one context of 1,500, one after the other, 64 new each"
    return Workload("d", about, calls, new=64, shared=len(context))


_MAKERS = {"a": _passages, "b": _latency, "c": _batch, "d": _questions}
NAMES = tuple(_MAKERS)


def workload(name: str, variant: int) -> Workload:
    """Return a workload, the same at every call.

    Args:
        name: one of `NAMES`.
        variant: draws other tokens for the same lengths. Every repeat has a variant of its own, so that a peer that
            keeps the keys and values of earlier prompts finds none of them in the next repeat.
    """
    chance = random.Random(f"{name}-{variant}")  # noqa: S311 - chance here guards nothing
    return _MAKERS[name](lambda count: [chance.randrange(FIRST, LAST) for _ in range(count)])
