"""From measurements to figures: medians, spreads, ratios, and shares of what the machine can do. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Run = Mapping[str, Any]
"""One workload by one peer in one repeat: `peer`, `work`, `repeat`, `new`, `prompt_tokens` and `calls`, each of which
has `wall`, `cpu`, `first_wall` and `first_cpu` in seconds; the last two are None where the peer cannot tell."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Several measurements of one thing.

    Attributes:
        median: of them.
        least: of them.
        most: of them.
    """

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Sum measurements up; there is at least one."""
        return cls(median(values), min(values), max(values))


def total(run: Run, clock: str) -> float:
    """Return the seconds of all calls; `clock` is `"cpu"` or `"wall"`."""
    return sum(call[clock] for call in run["calls"])


def first(run: Run, clock: str) -> float | None:
    """Return the seconds until the first token, of the median call; None where the peer could not tell."""
    times = [call[f"first_{clock}"] for call in run["calls"]]
    return None if None in times else median(times)


def decoding(run: Run, clock: str) -> float | None:
    """Return the tokens per second after the first one, of the median call; None where the peer could not tell."""
    speeds = []
    for call in run["calls"]:
        if call[f"first_{clock}"] is None:
            return None
        speeds.append((run["new"] - 1) / max(call[clock] - call[f"first_{clock}"], 1e-9))
    return median(speeds)


def runs_of(runs: Sequence[Run], peer: str, work: str) -> list[Run]:
    """Return a peer's repeats of a workload, in order."""
    return sorted((run for run in runs if run["peer"] == peer and run["work"] == work), key=lambda run: run["repeat"])


def ratio(runs: Sequence[Run], work: str, peer: str, base: str, clock: str) -> Figure | None:
    """Return how many times as long as `base` a peer took, each repeat against the same repeat.

    None where the two have no repeat in common.
    """
    own, other = ({run["repeat"]: total(run, clock) for run in runs_of(runs, name, work)} for name in (peer, base))
    times = [seconds / max(other[repeat], 1e-9) for repeat, seconds in own.items() if repeat in other]
    return Figure.of(times) if times else None


def agreement(runs: Sequence[Run], work: str, peer: str, base: str) -> float | None:
    """Return the share of tokens that come before a peer's answer first differs from `base`'s.

    Greedy answers part where rounding decides between two tokens, and stay apart. A peer that computes another model
    has none in common from the start.
    """
    own, other = ({run["repeat"]: run["tokens"] for run in runs_of(runs, name, work)} for name in (peer, base))
    shares = [
        _common(one, another) / len(one)
        for repeat, answers in own.items()
        if repeat in other
        for one, another in zip(answers, other[repeat], strict=True)
    ]
    return sum(shares) / len(shares) if shares else None


def _common(one: Sequence[int], another: Sequence[int]) -> int:
    pairs = enumerate(zip(one, another, strict=True))
    return next((at for at, (left, right) in pairs if left != right), len(one))


def bandwidth(run: Run, weights: Mapping[str, int], bits: int, clock: str) -> float | None:
    """Return the gigabytes of weights that decoding reads in a second, one request at a time; None if not known.

    Every weight once per token; scales, and keys and values, are not counted.
    """
    speed = decoding(run, clock)
    return None if speed is None else speed * (weights["body"] + weights["head"]) * bits / 8 / 1e9


def operations(run: Run, weights: Mapping[str, int], clock: str) -> float | None:
    """Return the billions of operations that a prefill makes in a second; None where it is not known.

    A multiplication and an addition per weight and token; attention, and the head for one token, are not counted.
    """
    seconds = first(run, clock)
    if seconds is None:
        return None
    return 2 * weights["body"] * run["prompt_tokens"] / len(run["calls"]) / max(seconds, 1e-9) / 1e9
