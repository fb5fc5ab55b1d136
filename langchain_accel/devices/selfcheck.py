"""Before a model serves: does the row step compute the logits that the model is known to compute?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from langchain_accel.devices.base import Device, IntArray, Logits
from langchain_accel.errors import ModelRejected

_TOKENS = 12
_CHUNKS = (0, 5, 9)  # a prefill, a resumed prefill, then single tokens
_PADDING = 3


class Tolerance(NamedTuple):
    """Relative error of centred logits that is allowed.

    A mixture of experts may route a single token differently for a rounding, hence two numbers; a wrong mask or
    position is far above both, in several tokens.

    Attributes:
        median: over tokens.
        worst: of the worst token.
        excused: tokens that are not looked at for that, the worst ones.
    """

    median: float
    worst: float
    excused: int = 0


FLOAT32 = Tolerance(1e-4, 1e-2)
BFLOAT16 = Tolerance(5e-2, 5e-1)
ROUNDED = Tolerance(2e-2, 5e-1)
"""Between two that round to 8 bits: what lies between two levels may be rounded either way, in few tokens."""
ROUNDED_BFLOAT16 = Tolerance(2.5e-1, 8e-1)
"""Likewise, with bfloat16 between products: many a number lies near the middle of two levels. A random GPT-NeoX of 24
layers comes to 0.11, as far as rounding itself takes it."""
INT8 = Tolerance(4e-1, 1.0, excused=2)
"""Against a model whose weights are not rounded. Tiny random models come near half of it; in a trained one whose
attention is sharp, two of a dozen random tokens may look elsewhere for a rounding. A wrong mask makes it 1.4."""
INT4 = Tolerance(5e-1, 1.0, excused=2)
"""Likewise."""


def probe(vocab_size: int, max_len: int | None) -> IntArray:
    """Return the check's prompt, `[n]` token ids: random, but the same at every load; no longer than `max_len`."""
    return np.random.default_rng(0).integers(0, vocab_size, _TOKENS)[:max_len]


def run(name: str, device: Device, prompt: IntArray) -> Logits:
    """Run the prompt through a device in pieces.

    Args:
        name: of the model, for the error.
        device: what will serve.
        prompt: `[n]` token ids.

    Returns:
        `[n, vocab_size]` logits.

    Raises:
        ModelRejected: the device fails.
    """
    try:
        return _in_pieces(device, prompt)
    except ModelRejected:
        raise
    except Exception as error:
        msg = f"{name} cannot run as row steps: {type(error).__name__}: {error}"
        raise ModelRejected(msg) from error


def compare(name: str, actual: Logits, expected: Logits, tolerance: Tolerance) -> None:
    """Compare a device's logits with those of the model by itself, both `[n, vocab_size]`.

    Raises:
        ModelRejected: they are off by more than the tolerance.
    """
    expected = expected - expected.mean(axis=-1, keepdims=True)
    actual = actual - actual.mean(axis=-1, keepdims=True)
    errors = np.linalg.norm(actual - expected, axis=-1) / (np.linalg.norm(expected, axis=-1) + 1e-9)
    median, worst = np.median(errors), np.sort(errors)[max(0, len(errors) - 1 - tolerance.excused)]
    if not (median <= tolerance.median and worst <= tolerance.worst):
        beside = f", {tolerance.excused} tokens aside" if tolerance.excused else ""
        msg = (
            f"{name} computes other logits as row steps than by itself (relative error {median:.2g}, worst {worst:.2g}"
            f"{beside}; {tolerance.median:.2g} and {tolerance.worst:.2g} are allowed): "
            "it is refused rather than answered wrongly"
        )
        raise ModelRejected(msg)


def _in_pieces(device: Device, prompt: IntArray) -> Logits:
    """Run the prompt on the arena's last row: prefill, resumed prefill, single tokens, all but these padded."""
    row = np.array([device.spec.rows - 1])
    cuts = [cut for cut in _CHUNKS if cut < len(prompt)] + list(range(_CHUNKS[-1] + 1, len(prompt) + 1))
    pieces = []
    for start, end in zip(cuts, [*cuts[1:], len(prompt)], strict=True):
        length = end - start
        if length == 0:
            continue
        tokens = np.pad(prompt[start:end], (0, _PADDING if length > 1 else 0))[None]
        logits = device.verify(tokens, np.array([length]), np.array([start]), row)
        pieces.append(logits[0, :length].copy())
    return np.concatenate(pieces)
