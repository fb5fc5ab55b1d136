"""The whole-step kernels behind the row step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from langchain_accel.devices.base import IntArray, Logits, Spec

if TYPE_CHECKING:
    import langchain_accel_kernels as kernels


class NativeDevice:
    """Implements `Device` by the kernels' model: real tokens of all lanes in one call, padding in none.

    A token's logits are the same, bit for bit, whatever shares its step.

    Attributes:
        spec: what it serves.
    """

    def __init__(self, model: kernels.Model, spec: Spec, on_close: Callable[[], object] = lambda: None) -> None:
        self.spec = spec
        self._model = model
        self._on_close = on_close
        self._closed = False

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """See `Device.prefill`."""
        return self._run(tokens, lengths, starts, rows, np.cumsum(lengths) - 1)

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Logits:
        """See `Device.decode`."""
        logits: Logits = self._model.step(tokens, rows, positions, np.arange(len(tokens)))
        return logits

    def verify(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """See `Device.verify`; zeros at padding."""
        logits = np.zeros((*tokens.shape, self.spec.vocab_size), np.float32)
        logits[_real(tokens, lengths)] = self._run(tokens, lengths, starts, rows, np.arange(lengths.sum()))
        return logits

    def copy_row(self, source: int, target: int, length: int) -> None:
        """See `Device.copy_row`."""
        self._model.copy_row(source, target, length)

    def forget(self, row: int) -> None:
        """Nothing to do: columns that nobody resumes are never read."""

    def close(self) -> None:
        """See `Device.close`."""
        if not self._closed:
            self._closed = True
            self._model.close()
            self._on_close()

    def _run(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray, wanted: IntArray) -> Logits:
        """Step the real tokens of all lanes, one lane after the other; `wanted` counts in these."""
        columns = starts[:, None] + np.arange(tokens.shape[1])
        real = _real(tokens, lengths)
        logits: Logits = self._model.step(tokens[real], np.repeat(rows, lengths), columns[real], wanted)
        return logits


def _real(tokens: IntArray, lengths: IntArray) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Which of `[B, L]` tokens are no padding."""
    return np.arange(tokens.shape[1]) < lengths[:, None]
