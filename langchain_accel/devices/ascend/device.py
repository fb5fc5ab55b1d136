"""The row step on a mindformers model: a row is a strip of KV-cache blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from langchain_accel.devices.ascend.blocks import Strips
from langchain_accel.devices.ascend.cache import CompileCache
from langchain_accel.devices.base import IntArray, Logits, Progress, Spec
from langchain_accel.errors import DeviceLost


class Network(Protocol):
    """A loaded model with its KV cache; `[B, vocab_size]` tensors of logits."""

    caches: list[Any]

    def compile(self, progress: Progress) -> None:
        """Compile what the runtime's warm-up does not."""

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Any:
        """See `Device.prefill`."""

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Any:
        """See `Device.decode`."""


class AscendRows:
    """A mindformers model as a row-step device. One thread owns it; it lives in a process of its own."""

    def __init__(self, network: Network, spec: Spec, strips: Strips, cache: CompileCache | None) -> None:
        self.spec = spec
        self._network: Network | None = network
        self._strips, self._cache = strips, cache
        self._copy: Any = _CopyBlocks()
        blocks = ms.Tensor(shape=[None], dtype=ms.int32)
        self._copy.set_inputs(ms.mutable(network.caches), blocks, blocks)

    def compile(self, progress: Progress) -> None:
        """Compile what the runtime's warm-up does not: the copy of a row, and graphs that serve every shape."""
        assert self._network is not None
        self._network.compile(progress)
        self.copy_row(0, self.spec.rows - 1, 1)

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """See `Device.prefill`."""
        return self._logits(lambda network: network.prefill(tokens, lengths, starts, rows), len(rows))

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Logits:
        """See `Device.decode`."""
        return self._logits(lambda network: network.decode(tokens, positions, rows), len(rows))

    def verify(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """Not offered: `spec.drafts` is 0."""
        raise NotImplementedError

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the blocks that hold the first `length` columns; see `Device.copy_row`."""
        source_blocks, target_blocks = (ms.Tensor(self._strips.holding(row, length)) for row in (source, target))
        self._run(lambda network: self._copy(ms.mutable(network.caches), source_blocks, target_blocks).asnumpy())

    def forget(self, row: int) -> None:  # noqa: ARG002  whichever row
        """Nothing to do: a row's blocks are its own, and no column past its tail is attended.

        The runtime forgets every row when it has warmed up, which is when every graph is compiled.
        """
        if self._cache is not None:
            self._cache.keep()

    def close(self) -> None:
        """Drop the model; its memory on the device goes with it."""
        self._network = None
        if self._cache is not None:
            self._cache.close()

    def _logits(self, step: Callable[[Network], Any], lanes: int) -> Logits:
        logits: Logits = self._run(lambda network: step(network).asnumpy())
        return np.ascontiguousarray(logits.reshape(lanes, -1)[:, : self.spec.vocab_size], np.float32)

    def _run(self, step: Callable[[Network], Any]) -> Any:
        """Run a step, up to the numbers it gives: MindSpore reports errors of a step when they are asked for.

        Raises:
            DeviceLost: MindSpore refused the step; what the rows hold is unknown from here on.
        """
        if self._network is None:
            msg = "the MindSpore model was closed"
            raise DeviceLost(msg)
        try:
            return step(self._network)
        except Exception as error:
            msg = f"MindSpore failed in a step: {type(error).__name__}: {error}"
            raise DeviceLost(msg) from error


class _CopyBlocks(nn.Cell):
    """Copies blocks of every cache within it, in one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.write = ops.ScatterNdUpdate()

    def construct(self, caches: Any, source: Any, target: Any) -> Any:
        """Compiled by MindSpore."""
        written: Any = ()
        for cache in caches:
            written = (*written, self.write(cache, target.expand_dims(1), ops.gather(cache, source, 0)))
        return ops.depend(target, written)
