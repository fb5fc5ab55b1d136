"""The step shapes a torch row device declares: fine enough that little is padded, few enough to warm up quickly."""

from __future__ import annotations

_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_BATCHES = (2, 4, 8)
_BATCHED_LENGTHS = (16, 32, 64)
_SINGLE_STEPS = 8


def decode_shapes(rows: int) -> tuple[int, ...]:
    """Return decode batch sizes up to `rows`: each up to 8, then steps that pad at most a quarter of a batch."""
    shapes = list(range(1, min(rows, _SINGLE_STEPS) + 1))
    while shapes[-1] < rows:
        widest = (shapes[-1] + 1) * 4 // 3  # a batch of one more than the last would be three quarters full
        shapes.append(min(rows, widest // 4 * 4))
    return tuple(shapes)


def prefill_shapes(rows: int, longest: int) -> tuple[tuple[int, int], ...]:
    """Return `(batch, length)` prefills: one row up to `longest` tokens, several rows where prompts are short.

    Args:
        rows: rows of the arena.
        longest: longest prefill of one row in tokens.
    """
    single = {(1, length) for length in (*_LENGTHS, longest) if length <= longest}
    several = {(batch, length) for batch in _BATCHES for length in _BATCHED_LENGTHS}
    return tuple(sorted(single | {shape for shape in several if shape[0] <= rows and shape[1] <= longest}))
