"""Attention circuits written as weights: where a head looks, and what it carries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HIDDEN, HEADS, HEAD = 288, 4, 64
ROPE_BASE = 1e10
"""Slow enough that twenty pairs of a head hardly turn over 2,048 tokens: they compare words, not places."""

PARTS = {
    "word": 64,
    "topic": 48,
    "flag": 16,
    "last": 32,
    "before_last": 16,
    "gathered": 48,
    "opening": 32,
    "target": 32,
}
_STEADY = tuple(range(12, 32))  # rotary pairs that turn less than 0.4 radians over the whole context


def part(name: str) -> slice:
    """Where a named part of the residual stream lies."""
    start = 0
    for other, size in PARTS.items():
        if other == name:
            return slice(start, start + size)
        start += size
    raise KeyError(name)


def frequency(pair: int) -> float:
    """Radians that a rotary pair turns per token."""
    return float(ROPE_BASE ** (-pair / (HEAD // 2)))


def steady(size: int) -> list[int]:
    """Positions within a head that compare words: both halves of the steady pairs."""
    places = [pair + half * HEAD // 2 for pair in _STEADY for half in (0, 1)]
    return places[:size]


class Heads:
    """Writes circuits into one attention layer."""

    def __init__(self, attention: torch.nn.Module) -> None:
        self.query, self.key = attention.q_proj.weight, attention.k_proj.weight
        self.value, self.output = attention.v_proj.weight, attention.o_proj.weight
        self._cleared: set[int] = set()

    def _clear(self, head: int) -> None:
        if head not in self._cleared:
            self._cleared.add(head)
            rows = slice(head * HEAD, (head + 1) * HEAD)
            for weight in (self.query, self.key, self.value):
                weight[rows] *= 0.1
            self.output[:, rows] *= 0.1

    def look(
        self, head: int, kernel: dict[int, tuple[float, float]], scale: float, *, among: int | None = None
    ) -> None:
        """Attend by distance: `kernel` has an amplitude and a phase for each rotary pair.

        Args:
            head: which head.
            kernel: scores by distance.
            scale: of what comes in.
            among: place of a flag; attend only where it is set.
        """
        self._clear(head)
        constant = part("flag").start
        seen = constant if among is None else among
        for pair, (amplitude, phase) in kernel.items():
            row = head * HEAD + pair
            size = math.sqrt(amplitude * math.sqrt(HEAD)) / scale
            self.query[row, constant] = size
            self.key[row, seen] = size * math.cos(phase)
            self.key[row + HEAD // 2, seen] = size * math.sin(phase)

    def match(
        self,
        head: int,
        query: slice,
        key: slice,
        queries: Tensor,
        sharpness: float,
        scale: float,
        *,
        keys: Tensor | None = None,
        skip: int = 0,
    ) -> None:
        """Attend where `keys @ key` is `queries @ query`; a perfect match scores about `sharpness`."""
        self._clear(head)
        places = [head * HEAD + place for place in steady(40)[skip : skip + len(queries)]]
        size = math.sqrt(sharpness * math.sqrt(HEAD)) / scale
        self.query[places, query] = size * queries
        self.key[places, key] = size * (queries if keys is None else keys)

    def carry(self, head: int, source: slice, target: slice, through: Tensor, at: int = 0) -> None:
        """Write `through @ source` of the attended place to `target`."""
        self._clear(head)
        wide, narrow = source.stop - source.start, target.stop - target.start
        rows = slice(head * HEAD + at, head * HEAD + at + narrow)
        assert at + narrow <= HEAD, "a head carries at most its own width"
        self.value[rows, source] = through if through.shape == (narrow, wide) else through[:narrow]
        self.output[target, rows] = torch.eye(narrow)


def kernel(amplitudes: dict[int, float], back: int = 0) -> dict[int, tuple[float, float]]:
    """Scores that peak `back` tokens ago: a sum of cosines of the distance."""
    return {pair: (amplitude, frequency(pair) * back) for pair, amplitude in amplitudes.items()}
