"""One model held by several processes, as a `Device`: every call goes to every rank, rank 0 answers."""

from __future__ import annotations

import atexit
import json
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import numpy as np

from langchain_accel.devices.base import IntArray, Logits, Placement, Plan, Progress, Rank, Spec, silent
from langchain_accel.errors import DeviceLost, EngineClosed
from langchain_accel.runtime.cores import Share, shares
from langchain_accel.runtime.dispatcher import Dispatcher
from langchain_accel.runtime.executor import order, spec_of
from langchain_accel.runtime.frames import Frame, Kind
from langchain_accel.runtime.processes import RankProcess
from langchain_accel.runtime.watch import Watch

CLOSE_SECONDS = 5.0
"""How long ranks may take to close their devices before they are killed."""

DYING_SECONDS = 2.0
"""How long a killed process may take to be gone; one that waits for a broken disk may take for ever."""


class WorkerGroup:
    """A device made of rank processes, each running the same `devices.<name>.load` and then the same calls.

    A call that fails on every rank fails alone (`StepFailed`, or the error of this package that the device raised).
    Anything else that goes wrong (a rank that dies, is silent, or fails where another does not) ends all ranks, and
    this and every later call raises `DeviceLost`.

    Attributes:
        spec: what rank 0 serves.
        lost: why the ranks are gone, once they are; set by a thread of its own while nobody calls.
    """

    spec: Spec

    def __init__(
        self, module: str, plan: Plan, placement: Placement, progress: Progress = silent, part: tuple[int, int] = (0, 1)
    ) -> None:
        """Start the ranks and load the model; returns when every rank is ready.

        Args:
            module: importable name of the device module.
            plan: what to load, options included.
            placement: number of ranks, interpreter, environment and time limits.
            progress: told how rank 0 loads, on the calling thread.
            part: which of how many equal groups on this machine it is: pinned ranks of one are not those of another.

        Raises:
            DeviceUnavailable: the ranks' interpreter cannot be run.
            DeviceLost: a rank died or raised an error that is not one of this package.
            AccelError: whatever a rank's `load` raised.
        """
        self.lost: DeviceLost | None = None
        self._placement, self._process, self._closed = placement, os.getpid(), False
        self._losing = threading.Lock()
        self._ranks: list[RankProcess] = []
        self._everybody = dict.fromkeys(range(placement.ranks), "")
        self._dispatcher = Dispatcher(self._ranks, self._lose, progress)
        self._watch: Watch | None = None
        self._own(None)
        orders = [
            order(module, plan, Rank(index, placement.ranks, index, placement.ranks)) for index in self._everybody
        ]
        self._loading, self._exit = True, partial(_at_exit, weakref.ref(self))
        atexit.register(self._exit)
        try:
            for index, share in enumerate(_shares(placement, *part)):
                self._ranks.append(RankProcess(index, placement, share))
            self._finalizer.detach()
            self._own(Watch(self._ranks, _telling(weakref.ref(self)), placement.silent_seconds))
            self.spec = self._load(orders)
        except BaseException:
            self._end(0)
            raise
        self._loading = False

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """See `Device.prefill`."""
        return self._step(Kind.PREFILL, tokens, lengths, starts, rows)

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Logits:
        """See `Device.decode`."""
        return self._step(Kind.DECODE, tokens, positions, rows)

    def verify(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """See `Device.verify`."""
        return self._step(Kind.VERIFY, tokens, lengths, starts, rows)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """See `Device.copy_row`."""
        self._run(Kind.COPY, np.array([source, target, length], np.int64))

    def forget(self, row: int) -> None:
        """See `Device.forget`."""
        self._run(Kind.FORGET, np.array([row], np.int64))

    def close(self) -> None:
        """Let every rank close its device, and end those that do not. Idempotent."""
        if not self._closed and os.getpid() == self._process:
            self._end(CLOSE_SECONDS)

    def _load(self, orders: list[dict[str, Any]]) -> Spec:
        seconds = self._placement.load_seconds
        if len(orders) > 1:
            address = self._dispatcher.ask(Kind.MEET, {0: ""}, seconds)[0].text
            for each in orders:
                each["rank"]["address"] = address
        texts = {index: json.dumps(each) for index, each in enumerate(orders)}
        loaded = self._dispatcher.ask(Kind.LOAD, texts, seconds)
        specs = [spec_of(json.loads(loaded[index].text)) for index in texts]
        for rank, spec in zip(self._ranks, specs, strict=True):
            if spec != specs[0]:
                raise self._lose(rank, f"loaded a device that differs from rank 0's: {spec} and {specs[0]}")
        self._ranks[0].memory.reach(specs[0])
        return specs[0]

    def _step(self, kind: Kind, *arrays: IntArray) -> Logits:
        (shape,) = self._run(kind, *arrays).arrays
        return self._ranks[0].memory.logits(tuple(shape.tolist()))

    def _run(self, kind: Kind, *arrays: IntArray) -> Frame:
        if self._closed or os.getpid() != self._process:
            msg = "the device is closed, or belongs to the process this one was forked from"
            raise EngineClosed(msg)
        if self.lost is not None:
            raise DeviceLost(*self.lost.args)
        return self._dispatcher.ask(kind, self._everybody, self._placement.step_seconds, arrays)[0]

    def _own(self, watch: Watch | None) -> None:
        """See to it that the ranks end with this object, and that a forked child leaves them alone."""
        self._watch = watch
        self._finalizer = weakref.finalize(self, _release, self._ranks, watch, self._process)
        self._finalizer.atexit = False  # at interpreter exit the ranks notice that their engine is gone
        _groups.add(self)

    def _lose(self, rank: RankProcess, why: str) -> DeviceLost:
        """Note the first loss, end all ranks, and return the error to raise."""
        with self._losing:
            if self.lost is None:
                log = rank.log.last_lines()
                self.lost = DeviceLost(
                    f"rank {rank.index} of {len(self._ranks)} (process {rank.pid}) {why}; "
                    + (f"the last lines of its log:{log}" if log else "its log is empty")
                )
                self._kill()
        return DeviceLost(*self.lost.args)

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.kill()

    def _end(self, seconds: float) -> None:
        """End the ranks: politely for `seconds`, then not."""
        self._closed = True
        atexit.unregister(self._exit)
        if self._watch is not None:
            self._watch.stop()  # before they end as they should
        deadline = monotonic() + seconds
        if seconds and self.lost is None:
            for rank in self._ranks:
                with suppress(OSError):
                    rank.channel.send(Frame(Kind.CLOSE, 0), 0)
            for rank in self._ranks:
                rank.gone(max(0.0, deadline - monotonic()))
        _release(self._ranks, None, self._process)
        self._finalizer.detach()

    def hurry(self) -> None:
        """The interpreter is about to end: it waits neither for a load nor, for long, for a step."""
        if self._loading or self._watch is None:
            self._kill()
        else:
            self._watch.end_in(CLOSE_SECONDS)

    def disown(self) -> None:
        """In a forked child: the ranks are the parent's."""
        self._finalizer.detach()
        for rank in self._ranks:
            rank.disown()


def _shares(placement: Placement, part: int, parts: int) -> list[Share]:
    ranks = placement.ranks
    return shares(ranks * parts)[part * ranks :][:ranks] if placement.pinned else [Share()] * ranks


def _release(ranks: Sequence[RankProcess], watch: Watch | None, process: int) -> None:
    """Kill, reap and close; also for a group that was dropped without `close`."""
    if os.getpid() == process:
        if watch is not None:
            watch.stop()
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.end(DYING_SECONDS)


def _telling(group: weakref.ref[WorkerGroup]) -> Callable[[RankProcess, str], None]:
    """Return what a watch calls; it does not keep the group alive."""

    def lost(rank: RankProcess, why: str) -> None:
        if (alive := group()) is not None:
            alive._lose(rank, why)  # noqa: SLF001 - part of it

    return lost


def _at_exit(group: weakref.ref[WorkerGroup]) -> None:
    if (alive := group()) is not None:
        alive.hurry()


def _disown_parents_groups() -> None:
    for group in list(_groups):
        group.disown()


_groups: weakref.WeakSet[WorkerGroup] = weakref.WeakSet()
os.register_at_fork(after_in_child=_disown_parents_groups)
