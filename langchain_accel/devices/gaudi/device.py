"""The row step over optimum-habana: all rows are written at one shared column, so they end there together."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from langchain_accel.devices.base import IntArray, Logits, Progress, Spec
from langchain_accel.devices.gaudi.columns import Columns
from langchain_accel.errors import DeviceLost


class GaudiRows:
    """A causal model of optimum-habana as a row-step device.

    Facts of optimum-habana 1.21.2 that shape it:

    1. A decode writes all rows at one column, `token_idx - 1`. So rows are kept right-aligned: each holds adjacent
       columns, which end where the next token goes.
    2. BLOOM takes distances from columns and not from the mask, so there must be no gaps within a row.
    3. A prefill starts from nothing: no prefix can be resumed.
    4. What a graph returns stands in the graph's own buffer, which its next replay overwrites.

    Attributes:
        spec: what it serves.
        columns: where each row's tokens stand.
    """

    def __init__(
        self,
        prefill: Callable[..., torch.Tensor],
        decode: Callable[..., torch.Tensor],
        shift: Callable[..., None],
        spec: Spec,
    ) -> None:
        """Take over steps that are ready to run.

        Args:
            prefill: as `Prefill.forward`.
            decode: as `Decode.forward`.
            shift: as `Shift.forward`.
            spec: what to serve.
        """
        self.spec = spec
        self.columns = Columns(spec.rows, spec.max_len)
        self._steps: dict[str, Callable[..., Any]] = {"prefill": prefill, "decode": decode, "shift": shift}
        self._on_close: Callable[[], object] = lambda: None

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call this once when the device closes."""
        self._on_close = callback

    def warm(self, progress: Progress) -> None:
        """Run every step twice, the one that no declared shape asks for among them.

        The first run of a step captures or compiles it, the second copies its arguments to where the first found them:
        each has recipes of its own.
        """
        shapes, rows = self.spec.prefill_shapes, np.arange(self.spec.rows)
        stage = "capturing steps"
        for done, shape in enumerate([*shapes, *shapes]):
            progress(stage, done, 2 * len(shapes))
            lanes = rows[: shape[0]]
            self.prefill(np.zeros(shape, np.int64), np.full_like(lanes, shape[1]), np.zeros_like(lanes), lanes)
        for _ in range(2):
            self.decode(np.zeros_like(rows), np.zeros_like(rows), rows)
            self._shift(np.tile(np.arange(self.spec.max_len), (self.spec.rows, 1)))
        for row in range(self.spec.rows):
            self.forget(row)
        progress(stage, 1, 1)

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """See `Device.prefill`."""
        assert tokens.shape in self.spec.prefill_shapes, f"no graph for a prefill of shape {tokens.shape}"
        assert not starts.any(), "a prefill past column 0 on a device that does not resume"
        width = tokens.shape[1]
        seats = np.arange(width) - width + lengths[:, None]  # which token of its prompt; negative where there is none
        seated = np.take_along_axis(tokens, np.maximum(seats, 0), axis=1)
        end = self.columns.seat(rows, lengths)
        sources = np.clip(np.arange(self.spec.max_len) - end + width, 0, width - 1)
        return self._run("prefill", seated, (seats >= 0).astype(np.int64), np.maximum(seats, 0), rows, sources)

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Logits:
        """See `Device.decode`; every row is named once."""
        order = np.argsort(rows)
        assert np.array_equal(rows[order], np.arange(self.spec.rows)), f"a decode names every row once, got {rows}"
        tokens, positions = tokens[order], positions[order]
        if (sources := self.columns.align(positions)) is not None:
            self._shift(sources)
        mask, end = self.columns.advance(positions)
        return self._run("decode", tokens[:, None], mask, positions[:, None], end)[rows]

    def verify(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """Not offered: `spec.drafts` is 0."""
        raise NotImplementedError

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Not offered: a prefill could not go on from the copy."""
        raise NotImplementedError

    def forget(self, row: int) -> None:
        """See `Device.forget`."""
        self.columns.forget(row)

    def close(self) -> None:
        """See `Device.close`."""
        if self._steps:
            self._steps = {}
            gc.collect()
            self._on_close()

    def _shift(self, sources: IntArray) -> None:
        self._run("shift", np.arange(self.spec.rows)[:, None], sources)

    def _run(self, step: str, *arrays: IntArray) -> Logits:
        """Run one step on the device; its logits are copied to the host, the one time that the host waits for it.

        Raises:
            DeviceLost: the step failed; what the rows hold is unknown from here on.
        """
        if not self._steps:
            msg = "the Gaudi model was closed"
            raise DeviceLost(msg)
        try:
            with torch.no_grad():
                moved = [torch.from_numpy(np.ascontiguousarray(array, np.int64)).to("hpu") for array in arrays]
                logits = self._steps[step](*moved)
                numbers: Logits = np.empty(0, np.float32) if logits is None else logits.cpu().numpy()
        except Exception as error:
            msg = f"a {step} on the Gaudi failed: {type(error).__name__}: {error}"
            raise DeviceLost(msg) from error
        return numbers
