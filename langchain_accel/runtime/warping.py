"""Temperature, top-k, top-p and min-p, as transformers' `generation/logits_process.py` defines them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from langchain_accel.devices.base import IntArray, Logits
from langchain_accel.runtime.request import SamplingParams

Weights = npt.NDArray[np.float64]

FIRST_LOOK, WIDEN = 512, 16
"""How many of the most probable tokens top-p examines first, and how many times more where they fall short."""


def warp(scores: Logits, best: float, params: SamplingParams) -> tuple[IntArray, Weights]:
    """Apply temperature, top-k, top-p and min-p, in this order, as transformers' logits warpers define them.

    Top-k keeps every token as probable as the k-th. Where several tokens tie at the edge of top-p, those with lower
    ids are kept. Min-p commutes with the two before it, because it compares with the most probable token.

    Args:
        scores: `[vocab_size]` processed logits; at least one is finite.
        best: the largest of them.
        params: the four settings; the temperature is above 0.

    Returns:
        The kept token ids `[N]`, ascending, and their weights `[N]`: probabilities relative to the largest one.
    """
    with np.errstate(over="ignore"):  # a tiny temperature sends the others to minus infinity, as it should
        weights: Weights = np.exp(np.subtract(scores, best, dtype=np.float64) / params.temperature)
    tokens: IntArray = np.arange(len(scores))
    if 0 < params.top_k < len(scores):
        edge = np.partition(scores, -params.top_k)[-params.top_k]
        tokens = np.flatnonzero(scores >= edge)
        weights = weights[tokens]
    if params.top_p < 1:
        kept = _nucleus(weights, params.top_p * float(weights.sum()))
        tokens, weights = tokens[kept], weights[kept]
    if params.min_p > 0:
        kept = np.flatnonzero(weights >= params.min_p)
        tokens, weights = tokens[kept], weights[kept]
    return tokens, weights


def _nucleus(weights: Weights, mass: float) -> IntArray:
    """Return the ascending places of the smallest set of largest weights whose sum reaches `mass`.

    A full sort of the vocabulary is avoided: the largest few hundred are cut off first, and more only where their
    sum falls short. The result is exact either way.
    """
    size = min(FIRST_LOOK, len(weights))
    while True:
        rest = len(weights) - size
        largest = np.sort(np.partition(weights, rest)[rest:] if rest else weights)[::-1]
        reached = largest.cumsum()
        if reached[-1] >= mass or not rest:
            break
        size = min(size * WIDEN, len(weights))
    count = min(int(reached.searchsorted(mass)) + 1, size)
    edge = largest[count - 1]
    kept = weights > edge
    ties = count - int(np.count_nonzero(kept))
    kept[np.flatnonzero(weights == edge)[:ties]] = True
    return np.flatnonzero(kept)
