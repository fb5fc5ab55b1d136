"""Whether ranks that are Ray actors are alive: a thread of the engine's process that asks them, and their nodes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from langchain_accel.runtime.ray_calls import ending
from langchain_accel.runtime.ray_seats import Seat
from langchain_accel.runtime.watch import LOOK_SECONDS, SILENT_SECONDS, Pulse, Sign


class RayWatch(threading.Thread):
    """Asks every rank for its heartbeat, and every node what its ranks do, and tells of the first that is gone."""

    def __init__(self, ray: Any, seats: Sequence[Seat], lost: Callable[[int, str], None]) -> None:
        """Start asking.

        Args:
            ray: the connected module.
            seats: in order of ranks.
            lost: told once, in this thread: which rank, and what happened to it.
        """
        super().__init__(name="accel-ray-watch", daemon=True)
        self._ray, self._seats, self._lost = ray, seats, lost
        self._stop_asking = threading.Event()
        self.start()

    def stop(self) -> None:
        """Stop asking. Idempotent."""
        self._stop_asking.set()
        if threading.current_thread() is not self:
            self.join()

    def run(self) -> None:
        """Body of the thread."""
        beats = [_Asked(self._ray, seat.actor.beat.options(concurrency_group="signs")) for seat in self._seats]
        looks = {seat.where.node: _Asked(self._ray, seat.lookout.look) for seat in self._seats}
        pulses = [Pulse() for _ in self._seats]
        before = monotonic()
        while not self._stop_asking.wait(LOOK_SECONDS):
            now = monotonic()
            fresh = {node for node, look in looks.items() if look.ask()}  # a node that is gone takes its ranks along
            for seat, beat, pulse in zip(self._seats, beats, pulses, strict=True):
                beat.ask()
                ticks, state = (looks[seat.where.node].answer or {}).get(seat.rank.index, (0, ""))
                sign = Sign(beat.answers, ticks, state if seat.where.node in fresh else "")
                silent = pulse.silent(sign, now - before)
                if beat.error is not None or silent:
                    stopped = ": it is stopped (a signal, or a debugger)" if sign.state in ("T", "t") else ""
                    why = f"has shown no sign of life for {SILENT_SECONDS:.0f} seconds{stopped}"
                    if not self._stop_asking.is_set():
                        self._lost(seat.rank.index, why if beat.error is None else ending(beat.error))
                    return
            before = now


class _Asked:
    """A method of an actor, asked again whenever it has answered.

    Attributes:
        answer: the latest.
        answers: how many there were.
        error: why there will be no more.
    """

    def __init__(self, ray: Any, method: Any) -> None:
        self.answer: Any = None
        self.answers = 0
        self.error: BaseException | None = None
        self._ray, self._method = ray, method
        self._asked = method.remote()

    def ask(self) -> bool:
        """Take the answer, if there is one, and ask again; return whether there was."""
        if self.error is not None or not self._ray.wait([self._asked], timeout=0)[0]:
            return False
        try:
            self.answer = self._ray.get(self._asked)
        except self._ray.exceptions.RayError as error:
            self.error = error
            return False
        self.answers += 1
        self._asked = self._method.remote()
        return True
