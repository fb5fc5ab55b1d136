"""How often a device may be lost before it is no longer loaded again at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from time import monotonic

from langchain_accel.errors import DeviceLost

MOST_LOSSES = 3
"""Losses in a row, without an answer between them, after which a request is refused instead of loading again."""

REST_SECONDS = 60.0
"""After that many losses: how long nobody loads. Then one request may try again."""


class Restarts:
    """Counts losses of each plan's device. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """Begin with no losses; `clock` gives seconds."""
        self._clock = clock
        self._lock = threading.RLock()  # a finaliser may come here while the same thread holds it
        self._losses: dict[Hashable, tuple[int, float, DeviceLost]] = {}

    def lost(self, plan: Hashable, why: DeviceLost, *, served: bool) -> None:
        """Count a loss.

        Args:
            plan: whose device it was.
            why: the loss.
            served: whether the device answered before it was lost: then it is the first in a row.
        """
        with self._lock:
            count = 0 if served else self._losses.get(plan, (0, 0.0, why))[0]
            self._losses[plan] = count + 1, self._clock(), why

    def forgive(self, plan: Hashable) -> None:
        """Forget a plan's losses: its device answered and was closed as it should be."""
        with self._lock:
            self._losses.pop(plan, None)

    def check(self, plan: Hashable) -> None:
        """Refuse to load a device that was lost too often.

        Raises:
            DeviceLost: with the reason of the last loss.
        """
        with self._lock:
            count, last, why = self._losses.get(plan, (0, 0.0, None))
            wait = last + REST_SECONDS - self._clock()
            if count >= MOST_LOSSES and wait > 0:
                msg = (
                    f"the device was lost {count} times in a row without an answer in between, and is not loaded again "
                    f"for the next {wait:.0f} seconds: remove the cause and try again then; the last time: {why}"
                )
                raise DeviceLost(msg)
