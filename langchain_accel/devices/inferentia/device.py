"""The row step on a compiled model: every call has one of two shapes, and every decode names every row."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch

from langchain_accel.devices.base import IntArray, Logits, Spec
from langchain_accel.errors import DeviceLost

_NO_SAMPLING = (1.0, 1.0, 1.0)  # top-k, top-p, temperature: inputs of every graph, unread where the host samples


class NeuronRows:
    """A causal model of optimum-neuron as a row-step device. A row is a `seq_id` of its KV cache.

    Six facts of optimum-neuron 0.4.5 shape it:

    1. A prefill writes one row, from column 0, padded to the compiled length; it touches no other row.
    2. A decode runs on all rows. Left to itself the library fills absent rows up with a copy of the first lane, and so
       overwrites what they hold: the tail rule gives every row a harmless column instead.
    3. Nothing checks a `seq_id`; the hardware clamps it and writes into the last row.
    4. Nothing checks a position; past the last column the hardware writes elsewhere.
    5. A prefill cannot start past column 0, nor be of another length: no graph exists for it.
    6. One caller at a time. `generate()` on the same model and the row step destroy each other's cache.
    """

    def __init__(self, model: Any, spec: Spec) -> None:
        self.spec = spec
        self._model: Any = model
        self._lock = threading.Lock()

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """Write one row from column 0; see `Device.prefill`."""
        assert tokens.shape in self.spec.prefill_shapes, f"no graph for a prefill of shape {tokens.shape}"
        assert not starts.any(), "a prefill past column 0 on a device that does not resume"
        assert 1 <= lengths[0] <= self.spec.max_len
        columns = np.arange(self.spec.max_len)
        # The graph takes the logits at the first of the highest positions, and the highest one that is real is the
        # last token's: padding repeats position 0. The causal mask hides what stands to the right.
        positions = np.where(columns < lengths[0], columns, 0)[None]
        return self._forward(tokens, positions, rows)

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Logits:
        """Write one token in every row; see `Device.decode`."""
        order = np.argsort(rows)
        assert np.array_equal(rows[order], np.arange(self.spec.rows)), f"a decode names every row once, got {rows}"
        assert 0 <= positions.min() <= positions.max() < self.spec.max_len
        logits = self._forward(tokens[order, None], positions[order, None], rows[order])
        return logits[rows]

    def verify(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """Not offered: `spec.drafts` is 0."""
        raise NotImplementedError

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Not offered: the KV cache never leaves the device."""
        raise NotImplementedError

    def forget(self, row: int) -> None:
        """Nothing to do: the next prefill starts the row over, and no column past a row's tail is attended."""

    def close(self) -> None:
        """Drop the model; its memory on the device goes with it."""
        with self._lock:
            self._model = None

    def _forward(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Logits:
        """Run one graph; `[lanes, vocab_size]` logits.

        Raises:
            DeviceLost: the Neuron runtime refused the step; what the rows hold is unknown from here on.
        """
        assert 0 <= rows.min() <= rows.max() < self.spec.rows, f"rows {rows} of {self.spec.rows}"
        with self._lock, torch.inference_mode():
            if self._model is None:
                msg = "the Neuron model was closed"
                raise DeviceLost(msg)
            try:
                out = self._model.forward(
                    torch.from_numpy(tokens.astype(np.int64)),
                    torch.from_numpy(positions.astype(np.int64)),
                    torch.from_numpy(rows.astype(np.int64)),
                    torch.tensor([_NO_SAMPLING] * len(rows)),
                )
            except Exception as error:
                msg = f"the Neuron runtime failed in a step: {type(error).__name__}: {error}"
                raise DeviceLost(msg) from error
        logits: Logits = out[:, -1, : self.spec.vocab_size].float().numpy()
        return logits
