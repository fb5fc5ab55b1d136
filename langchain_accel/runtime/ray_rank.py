"""What Ray runs on its nodes: an actor around each rank's executor, and an actor on each node that looks after them."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

from langchain_accel.devices.base import Logits
from langchain_accel.runtime.executor import Executor, told
from langchain_accel.runtime.frames import Decoder, Frame, Kind, encode
from langchain_accel.runtime.rank_log import RankLog
from langchain_accel.runtime.watch import work

_NAP_SECONDS = 0.01
_PATIENCE_SECONDS = 0.5


class Whereabouts(NamedTuple):
    """Where a rank's actor is.

    Attributes:
        node: Ray's name of the node.
        host: the node's address.
        pid: the actor's process there.
        log: its descriptor of the log.
    """

    node: str
    host: str
    pid: int
    log: int


class RankActor:
    """One rank. Calls come one after the other; `beat` is in a concurrency group of its own and comes at any time."""

    def __init__(self) -> None:
        self._executor = Executor()
        self._answers = False
        self._progress = ("", 0, 0)
        self._log = RankLog()
        for descriptor in (1, 2):
            os.dup2(self._log.fileno(), descriptor)
        faulthandler.enable()

    def where(self) -> Whereabouts:
        """Say where this actor is."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return Whereabouts(node, ray.util.get_node_ip_address(), os.getpid(), self._log.fileno())

    def run(self, data: bytes) -> tuple[bytes, Logits | None]:
        """Run the call of one encoded frame; return the encoded answer, and logits where it has any on this rank.

        Errors of the device are answers as well: no exception object is sent.
        """
        (frame,) = Decoder().feed(data)
        try:
            answer = Frame(Kind.DONE, frame.call, text=self._control(frame))
            logits = self._executor.run(frame.kind, frame.arrays) if frame.kind not in _CONTROL else None
        except Exception as error:  # noqa: BLE001 - the engine must hear of whatever a device raises
            traceback.print_exc()
            return encode(Frame(Kind.FAILED, frame.call, text=told(error))), None
        return encode(answer), logits if self._answers else None

    def beat(self) -> tuple[str, int, int]:
        """Show that this process lives, and how far its load is: stage, done and total."""
        return self._progress

    def _control(self, frame: Frame) -> str:
        if frame.kind is Kind.MEET:
            return self._executor.meet(frame.text)
        if frame.kind is Kind.LOAD:
            order = json.loads(frame.text)
            self._answers = order["rank"]["index"] == 0
            return json.dumps(asdict(self._executor.load(order, self._tell)))
        if frame.kind is Kind.CLOSE:
            self._executor.close()
        return ""

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._progress = stage, done, total


_CONTROL = frozenset({Kind.MEET, Kind.LOAD, Kind.CLOSE})


class Lookout:
    """Looks at the ranks of its node from outside, reads their logs when they are dead, and ends what does not end.

    A rank that compiles or imports may let no other thread of its process run: then its own heart does not beat, and
    only somebody outside can tell that it is at work.
    """

    def __init__(self, ranks: Mapping[int, tuple[int, int]]) -> None:
        """Take over ranks of this node: index to process id and descriptor of its log."""
        self._born = {pid: _born(pid) for pid, _ in ranks.values()}
        self._pids = {index: pid for index, (pid, _) in ranks.items()}
        self._logs = {index: RankLog(Path(f"/proc/{pid}/fd/{log}")) for index, (pid, log) in ranks.items()}

    def look(self) -> dict[int, tuple[int, str]]:
        """Return each rank's processor time in ticks and its state; see `watch.Sign`."""
        for log in self._logs.values():
            log.trim()
        return {index: work(pid) for index, pid in self._pids.items()}

    def last_lines(self, index: int) -> str:
        """Return the last lines of a rank's log; it may be dead."""
        return self._logs[index].last_lines()

    def kill(self, seconds: float) -> bool:
        """Kill the ranks, stopped ones too; return whether all are gone within so many seconds.

        Those that Ray has told to exit are given a moment to do so: it would report the others as an accident.
        """
        patience, deadline = monotonic() + _PATIENCE_SECONDS, monotonic() + seconds
        while alive := [pid for pid, born in self._born.items() if born and _born(pid) == born]:
            if monotonic() > deadline:
                return False
            for pid in alive if monotonic() > patience else ():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:  # noqa: PERF203 - it went by itself
                    continue
            sleep(_NAP_SECONDS)
        return True


def _born(pid: int) -> int:
    """Return when a living process began, in the kernel's ticks; 0 where there is none. Process ids come again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    state, *numbers = stat.rpartition(")")[2].split()
    return 0 if state in ("Z", "X") else int(numbers[18])
