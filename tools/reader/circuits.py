"""Attention circuits written as weights: where a head looks, and what it carries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HEADS, HEAD = 4, 96
BLOCK = 16
"""Numbers in a block, of which a part has several."""
ROPE_BASE = 1e12
"""Slow enough that seventy places of a head hardly turn over 2,048 tokens: they compare words, not places."""

PARTS = {
    "word": 64,
    "topic": 48,
    "flag": 29,
    "last": 32,
    "before_last": 16,
    "around": 32,
    "sentence": 32,
    "vote": 32,
    "target": 32,
    "free": 67,
}
"""The residual stream: a token's own direction; the same by its letters; flags; the two tokens before it; the words
around; which sentence this is; where else this word stands; the sentence that is spoken of; what training
finds."""
HIDDEN = sum(PARTS.values())
assert HIDDEN == HEADS * HEAD, "or optimum-habana and optimum-neuron, which take no other heads, cannot serve it"
FLAGS = (
    "constant", "sink", "ends", "gap", "start", "line", "role", "user", "rare", "quote", "colon", "naming",
    "last_gap", "before_ends", "last_role", "last_colon", "turn", "opens", "begins", "value", "names", "mine", "asked",
    "named", "dot", "level", "typed", "text", "truth",
)  # fmt: skip
_STEADY = tuple(range(13, HEAD // 2))  # rotary pairs that turn about a radian at most over the whole context


def part(name: str) -> slice:
    """Where a named part of the residual stream lies."""
    start = 0
    for other, size in PARTS.items():
        if other == name:
            return slice(start, start + size)
        start += size
    raise KeyError(name)


def blocks(name: str, *numbers: int) -> slice:
    """Some of the blocks of a part, which are all of one norm."""
    start = part(name).start
    return slice(start + numbers[0] * BLOCK, start + (numbers[-1] + 1) * BLOCK)


def flag(name: str) -> slice:
    """Where a flag lies."""
    place = part("flag").start + FLAGS.index(name)
    return slice(place, place + 1)


def frequency(pair: int) -> float:
    """Radians that a rotary pair turns per token."""
    return float(ROPE_BASE ** (-pair / (HEAD // 2)))


class Heads:
    """Writes circuits into one attention layer whose input is multiplied by `scale`."""

    def __init__(self, attention: torch.nn.Module, scale: float) -> None:
        self.query, self.key = attention.q_proj.weight, attention.k_proj.weight
        self.value, self.output = attention.v_proj.weight, attention.o_proj.weight
        self.scale = scale
        self._free: dict[int, list[int]] = {}
        self._carried: dict[int, int] = {}

    def _places(self, head: int) -> list[int]:
        """Places of a head that compare words and are not in use."""
        if head not in self._free:
            rows = slice(head * HEAD, (head + 1) * HEAD)
            for weight in (self.query, self.key, self.value):
                weight[rows] *= 0.1
            self.output[:, rows] *= 0.1
            self._free[head] = [head * HEAD + pair + half * HEAD // 2 for pair in _STEADY for half in (0, 1)]
        return self._free[head]

    def _room(self, head: int, size: int) -> int:
        """Where the next `size` numbers lie that a head carries."""
        at = self._carried.get(head, 0)
        assert at + size <= HEAD, "a head carries at most its own width"
        self._carried[head] = at + size
        return at

    def look(self, head: int, amplitudes: dict[int, float], *, back: float = 0, among: str = "constant") -> None:
        """Attend by distance: scores are a sum of cosines that peak `back` tokens ago.

        Args:
            head: which head.
            amplitudes: of each rotary pair.
            back: where scores peak; less than 0 to make them fall from here on.
            among: a flag; scores are for tokens that have it.
        """
        self._places(head)
        for pair, amplitude in amplitudes.items():
            row = head * HEAD + pair
            size = math.sqrt(abs(amplitude) * math.sqrt(HEAD)) / self.scale
            phase = frequency(pair) * back
            self.query[row, flag("constant")] = math.copysign(size, amplitude)
            self.key[row, flag(among)] = size * math.cos(phase)
            self.key[row + HEAD // 2, flag(among)] = size * math.sin(phase)

    def match(self, head: int, query: slice, key: slice, sharpness: float) -> None:
        """Attend where `key` holds what `query` holds here; scores are `sharpness` times their product."""
        size = math.sqrt(abs(sharpness) * math.sqrt(HEAD)) / self.scale
        free = self._places(head)
        for one, other in zip(range(query.start, query.stop), range(key.start, key.stop), strict=True):
            place = free.pop(0)
            self.query[place, one] = math.copysign(size, sharpness)
            self.key[place, other] = size

    def say(self, head: int, told: slice, target: slice, vector: Tensor) -> None:
        """Add `vector` to `target` where the attended place has the flag `told`."""
        row = head * HEAD + self._room(head, 1)
        self.value[row, told] = 1.0 / self.scale
        self.output[target, row] = vector

    def carry(self, head: int, source: slice, target: slice, times: float = 1.0) -> None:
        """Add `source` of the attended place to `target`."""
        self._places(head)
        at = self._room(head, source.stop - source.start)
        for step, (one, other) in enumerate(
            zip(range(source.start, source.stop), range(target.start, target.stop), strict=True)
        ):
            row = head * HEAD + at + step
            self.value[row, one] = times / self.scale
            self.output[other, row] = 1.0
