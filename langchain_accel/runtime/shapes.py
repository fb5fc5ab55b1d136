"""Declared shapes: which one a step runs in, and lists of them that devices can declare.

Graph capture is a discipline, not a class: a finite list of shapes, each warmed once, then frozen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from langchain_accel.devices.base import Spec

Kind = Literal["prefill", "decode", "verify"]


class Shape(NamedTuple):
    """What a graph is keyed by; `attended` is 0 where the device declares no attended lengths."""

    kind: Kind
    batch: int
    length: int
    attended: int


MAX_WASTE = 4 / 3
"""Padded tokens per real token up to which several prompts share one prefill."""


MAX_DRAFT_WASTE = 2
"""Padded tokens per real token up to which a step that checks drafts is worth running."""

MAX_DRAFT_TOKENS = 64
"""Tokens of such a step at most: with more lanes, a decode step keeps the hardware busy without drafts."""


@dataclass(frozen=True, slots=True)
class PrefillFit:
    """The first `count` requests of the queue run in one prefill of declared shape `(batch, length)`."""

    count: int
    batch: int
    length: int


def fit_prefill(spec: Spec, remaining: Sequence[int], spare: int) -> PrefillFit:
    """Choose the prefill for requests in order of arrival.

    The first request always gets as long a chunk as it would get alone; others join where a declared batch takes
    them without wasting more than a quarter of its tokens on padding.

    Args:
        spec: the device's declared shapes.
        remaining: prompt tokens still to compute, per request, in order of arrival; not empty.
        spare: rows on which padding lanes may run, beside the rows of the requests.
    """
    first = min(remaining[0], spec.chunk)
    alone = min(length for batch, length in spec.prefill_shapes if batch == 1 and length >= first)
    best, most = PrefillFit(1, 1, alone), first
    for batch, length in spec.prefill_shapes:
        count = min(batch, len(remaining))
        if count == 1 or length < first or batch - count > spare:
            continue
        if not spec.resumes and any(tokens > length for tokens in remaining[:count]):
            continue  # a prompt that cannot be resumed must fit as a whole
        real = sum(min(tokens, length) for tokens in remaining[:count])
        if real > most and batch * length <= MAX_WASTE * real:
            best, most = PrefillFit(count, batch, length), real
    return best


def fit_decode(spec: Spec, count: int) -> int:
    """Return the smallest declared decode batch for `count` rows."""
    return next(batch for batch in spec.decode_shapes if batch >= count)


def verify_shapes(spec: Spec) -> list[tuple[int, int]]:
    """Return the `(batch, length)` pairs in which drafts are checked, ascending: decode batches, lengths from 4 up.

    A lane holds the last token and its draft, so that a length of 4 checks 3 tokens.
    """
    lengths = [length for length in (4, 8, 16, 32) if length < spec.drafts] + [spec.drafts]
    return [
        (batch, length)
        for batch in spec.decode_shapes
        for length in lengths
        if 1 < length <= spec.drafts and batch * length <= MAX_DRAFT_TOKENS
    ]


def fit_verify(spec: Spec, lengths: Sequence[int]) -> int | None:
    """Choose the length in which to check the drafts of a decode step, or `None` to leave them.

    Args:
        spec: the device's declared shapes.
        lengths: per lane the tokens of its last token and its draft, at least 1.
    """
    batch, longest = fit_decode(spec, len(lengths)), max(lengths)
    served = [length for same, length in verify_shapes(spec) if same == batch] if longest > 1 else []
    needed = [length for place, length in enumerate(served) if place == 0 or served[place - 1] < longest]
    for length in reversed(needed):
        real = sum(min(tokens, length) for tokens in lengths)
        if batch * length <= MAX_DRAFT_WASTE * real:
            return length
    return None


def declared(spec: Spec) -> list[tuple[int, Shape]]:
    """Return every shape that serving can ask for, with the column it starts at in warm-up, by ascending column."""
    attended_lens = spec.attended_lens or (0,)
    shapes = [
        (max(attended - 1, 0), Shape("decode", batch, 1, attended))
        for batch in spec.decode_shapes
        for attended in attended_lens
    ]
    shapes += [
        (max(attended - length, 0), Shape("verify", batch, length, attended))
        for batch, length in verify_shapes(spec)
        for attended in attended_lens
    ]
    for batch, length in spec.prefill_shapes:
        whole = spec.attended(length)  # what a full lane attends at column 0; a shorter one less, a resumed one more
        least = spec.attended(_least(spec, batch, length))
        shapes += [
            (attended - length if attended > whole else 0, Shape("prefill", batch, length, attended))
            for attended in attended_lens
            if attended >= least and (attended <= whole or spec.resumes)
        ]
    return sorted(shapes)


def _least(spec: Spec, batch: int, length: int) -> int:
    """Return the fewest tokens that the longest lane of a prefill has for which `fit_prefill` chooses this shape."""
    shorter = max((other for same, other in spec.prefill_shapes if same == batch and other < length), default=0)
    return shorter + 1 if batch == 1 else max(shorter + 1, math.ceil(length / MAX_WASTE))
