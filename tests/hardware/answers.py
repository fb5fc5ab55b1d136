"""Where two greedy answers part, and what that costs."""

from __future__ import annotations

import math

from langchain_accel.runtime.stream import Completion


def loss(ours: Completion, theirs: tuple[int, ...]) -> float:
    """Return by how much their token is less likely than ours where two greedy answers part; 0 if they never do.

    In bfloat16 two tokens often have the very same logit, and which of them is the largest is anybody's choice.
    """
    assert len(ours.tokens) == len(theirs)
    for entry, token in zip(ours.logprobs, theirs, strict=True):
        if entry.token != token:
            return float(entry.logprob - dict(entry.top).get(token, -math.inf))
    return 0.0
