"""Whether ranks are alive: a thread of the engine's process that looks at them, and the judgement of what it sees."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from langchain_accel.runtime.processes import RankProcess

LOOK_SECONDS = 0.5
"""Time between two looks."""

SILENT_SECONDS = 3.5
"""How long a rank may show no sign of life; with the looks before and after it a loss is noticed within 5 seconds."""


class Sign(NamedTuple):
    """What can be seen of a rank from outside.

    Attributes:
        beats: its heartbeats so far. They stop while a library computes, or loads another, without letting Python go.
        ticks: processor time it has used so far.
        state: its state as Linux writes it: R runs, D waits for a disk, S sleeps, T is stopped; empty: unknown.
    """

    beats: int
    ticks: int = 0
    state: str = ""


class Pulse:
    """One rank's signs of life."""

    def __init__(self, patience: float = SILENT_SECONDS) -> None:
        self._last = Sign(0)
        self._quiet, self._patience = 0.0, patience

    def silent(self, sign: Sign, seconds: float) -> bool:
        """Take note of a look, `seconds` after the one before; return whether the rank has been silent for too long.

        A look that comes late counts as if it came in time: it was this process that did not run.
        """
        alive = sign[:2] != self._last[:2] or sign.state in ("R", "D")
        self._quiet = 0.0 if alive else self._quiet + min(seconds, 2 * LOOK_SECONDS)
        self._last = sign
        return self._quiet >= self._patience


class Watch(threading.Thread):
    """Looks at every rank twice a second, keeps their logs short, and tells of the first that is gone."""

    def __init__(
        self, ranks: Sequence[RankProcess], lost: Callable[[RankProcess, str], None], patience: float | None = None
    ) -> None:
        """Start looking.

        Args:
            ranks: the processes to watch.
            lost: told once, in this thread: which rank, and what happened to it.
            patience: seconds that a rank may be silent; None for `SILENT_SECONDS`.
        """
        super().__init__(name="accel-watch", daemon=True)
        self._ranks, self._lost, self._patience = ranks, lost, patience or SILENT_SECONDS
        self._stop_looking = threading.Event()
        self._last_look = float("inf")
        self.start()

    def end_in(self, seconds: float) -> None:
        """Take the ranks for lost in so many seconds, whatever they do, unless it is told to stop before."""
        self._last_look = monotonic() + seconds

    def stop(self) -> None:
        """Stop looking, and wait for a look that goes on right now. Idempotent."""
        self._stop_looking.set()
        if threading.current_thread() is not self:
            self.join()

    def run(self) -> None:
        """Body of the thread."""
        pulses = [Pulse(self._patience) for _ in self._ranks]
        while not self._stop_looking.wait(LOOK_SECONDS):
            for rank, pulse in zip(self._ranks, pulses, strict=True):
                rank.log.trim()
                sign = look(rank)
                why = rank.ended()
                if why is None and pulse.silent(sign, LOOK_SECONDS):
                    stopped = ": it is stopped (a signal, or a debugger)" if sign.state in ("T", "t") else ""
                    why = f"has shown no sign of life for {self._patience:.0f} seconds{stopped}"
                if why is None and monotonic() > self._last_look:
                    why = "had not come to an end when the interpreter had to"
                if why is not None:
                    self._lost(rank, why)
                    return


def look(rank: RankProcess, root: Path = Path("/")) -> Sign:
    """Return what can be seen of a rank."""
    return Sign(rank.memory.beats, *work(rank.pid, root))


def work(pid: int, root: Path = Path("/")) -> tuple[int, str]:
    """Return a process's processor time so far in ticks, and its state; 0 and the empty text where it is not there."""
    try:
        stat = (root / f"proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0, ""
    state, *numbers = stat.rpartition(")")[2].split()
    return int(numbers[10]) + int(numbers[11]), state
