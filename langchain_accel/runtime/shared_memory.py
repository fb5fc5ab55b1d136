"""Memory that an engine and one rank share: the rank's heartbeat, and the logits of rank 0.

It has no name in any folder, so that nothing is left behind however the processes end.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from math import prod

import numpy as np
import numpy.typing as npt

from langchain_accel.devices.base import Logits, Spec

_PAGE = mmap.ALLOCATIONGRANULARITY


class SharedMemory:
    """One page with a counter, then room for logits once `grow` or `reach` was called.

    Attributes:
        descriptor: what the other process opens it with.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._page: npt.NDArray[np.int64] = np.frombuffer(mmap.mmap(descriptor, _PAGE), np.int64)
        self._logits: Logits = np.zeros(0, np.float32)

    @classmethod
    def create(cls) -> SharedMemory:
        """Return new anonymous memory."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("accel-rank")
        else:  # a file without a name
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _PAGE)
        return cls(descriptor)

    @property
    def beats(self) -> int:
        """How often the rank's heart has beaten."""
        return int(self._page[0])

    def beat(self) -> None:
        """Count one more heartbeat."""
        self._page[0] += 1

    def grow(self, spec: Spec) -> Logits:
        """Make room for the largest logits of a spec and return it, flat. Pages cost memory once they are written."""
        os.ftruncate(self.descriptor, _PAGE + 4 * most_logits(spec))
        return self.reach(spec)

    def reach(self, spec: Spec) -> Logits:
        """Map the room that the other process has made, and return it, flat."""
        count = most_logits(spec)
        self._logits = np.frombuffer(mmap.mmap(self.descriptor, 4 * count, offset=_PAGE), np.float32)
        return self._logits

    def logits(self, shape: tuple[int, ...]) -> Logits:
        """Return the first floats as an array of `shape`; no copy.

        Raises:
            ValueError: they would not fit.
        """
        size = prod(shape)
        if size > self._logits.size:
            msg = f"logits of shape {shape} do not fit the {self._logits.size} floats of the spec's largest step"
            raise ValueError(msg)
        return self._logits[:size].reshape(shape)

    def close(self) -> None:
        """Let go of the memory; what somebody still looks at goes with the last view of it. Idempotent."""
        self._page, self._logits = np.zeros(1, np.int64), np.zeros(0, np.float32)
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def most_logits(spec: Spec) -> int:
    """Return the floats of the largest logits that a device of this spec returns: `[rows, drafts, vocab_size]`."""
    return spec.rows * max(1, spec.drafts) * spec.vocab_size
