"""A transformers model behind the row step."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from langchain_accel.devices import selfcheck
from langchain_accel.devices.base import IntArray, Logits, Progress, Rank, Spec
from langchain_accel.devices.torch_rows import linears
from langchain_accel.devices.torch_rows.adapters import install, whole_slopes
from langchain_accel.devices.torch_rows.arena import TorchArena
from langchain_accel.devices.torch_rows.attention import RowAttention
from langchain_accel.devices.torch_rows.proof import check_layers, plain_logits, tolerance
from langchain_accel.devices.torch_rows.quantised import check_covered
from langchain_accel.devices.torch_rows.rounding import Rounding
from langchain_accel.devices.torch_rows.step import Step, pack


def open_device(
    model: Any,
    dtype: torch.dtype,
    spec: Spec,
    *,
    pack: linears.Pack | None,
    rounding: Rounding | None = None,
    progress: Progress,
    on_close: Callable[[], object],
    rank: Rank = Rank(),  # noqa: B008
) -> RowDevice:
    """Turn a loaded model into a device that has proven to compute the model's own logits.

    Args:
        model: a causal language model as transformers loaded it, or this rank's share of one; taken over and changed.
        dtype: of the KV cache where `rounding` makes none.
        spec: what to serve.
        pack: what each linear layer is replaced by; None to leave them, and where `rounding` is given.
        rounding: how to round its weights, and to make its KV cache; the row step is held closely against that model,
            and against the one with exact weights.
        progress: told about packing and checking.
        on_close: called once when the device closes.
        rank: whose share `model` is; all ranks must call this, and then step, together.

    Raises:
        ModelRejected: as row steps the model does not compute what it computes by itself.
    """
    model.config.pad_token_id = None  # or transformers looks for padding, and warns, at every step
    prompt = selfcheck.probe(spec.vocab_size, spec.max_len)
    with whole_slopes(model, rank):
        exact = expected = plain_logits(model, prompt)
    if rounding is not None:
        linears.replace(model, rounding.linear(model), progress, tied=True)
        check_covered(model)
        expected = plain_logits(model, prompt)
    if pack is not None:
        linears.replace(model, pack, progress)
    arena = rounding.arena(spec.rows, spec.max_len) if rounding else TorchArena(spec.rows, spec.max_len, dtype)
    attention = RowAttention(arena)
    install(model, attention, rank)
    device = RowDevice(model, attention, spec, on_close=on_close)
    progress("checking the model", 0, 1)
    try:
        name = type(model).__name__
        actual = selfcheck.run(name, device, prompt)
        check_layers(model, attention, spec.max_len)
        selfcheck.compare(name, actual, expected, tolerance(arena.dtype, int8=rounding is not None))
        if rounding is not None:
            selfcheck.compare(name, actual, exact, rounding.tolerance)
    except BaseException:
        attention.close()  # its registered name would keep the arena
        raise
    progress("checking the model", 1, 1)
    return device


class RowDevice:
    """Implements `Device` for a causal language model whose attention has been replaced.

    Every call packs its lanes into one sequence and runs the model's forward once. One thread owns it.

    Attributes:
        spec: what it serves.
    """

    def __init__(
        self,
        model: Any,
        attention: RowAttention,
        spec: Spec,
        on_close: Callable[[], object] = lambda: None,
    ) -> None:
        self.spec = spec
        self._model = model
        self._attention = attention
        self._place = next(model.parameters()).device
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._on_close = on_close

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """See `Device.prefill`."""
        step = pack(tokens, lengths, starts, rows, self.spec.max_len, self._place)
        return self._run(step, step.last)

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Logits:
        """See `Device.decode`."""
        return self.prefill(tokens[:, None], np.ones_like(positions), positions, rows)

    def verify(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """See `Device.verify`."""
        step = pack(tokens, lengths, starts, rows, self.spec.max_len, self._place)
        return self._run(step, None).reshape(*tokens.shape, -1)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """See `Device.copy_row`."""
        self._attention.arena.copy(source, target, length)

    def forget(self, row: int) -> None:
        """Nothing to do: columns that nobody resumes are never read."""

    def close(self) -> None:
        """See `Device.close`."""
        if self._model is None:
            return
        self._model = None
        self._attention.close()
        gc.collect()
        self._on_close()

    def _run(self, step: Step, wanted: torch.Tensor | None) -> Logits:
        """Run one packed step; `[wanted, vocab_size]` logits at those packed tokens, all of them for None."""
        arguments = {"logits_to_keep": wanted} if self._keeps and wanted is not None else {}
        with torch.inference_mode(), self._attention.during(step):
            logits = self._model(
                input_ids=step.tokens, position_ids=step.positions, use_cache=False, return_dict=True, **arguments
            ).logits[0]
        if not self._keeps and wanted is not None:
            logits = logits[wanted]
        numbers: Logits = logits.float().cpu().numpy()
        return numbers
