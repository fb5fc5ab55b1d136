"""One model held by Ray actors on the nodes of a cluster, as a `Device`."""

from __future__ import annotations

import atexit
import json
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from langchain_accel.devices.base import IntArray, Logits, Placement, Plan, Progress, Spec, silent
from langchain_accel.errors import DeviceLost, EngineClosed, PlanRejected
from langchain_accel.runtime.executor import order, spec_of
from langchain_accel.runtime.frames import Frame, Kind, encode
from langchain_accel.runtime.ray_calls import RayCalls
from langchain_accel.runtime.ray_cluster import connect
from langchain_accel.runtime.ray_seats import Seat, reserve, start
from langchain_accel.runtime.ray_watch import RayWatch
from langchain_accel.runtime.workers import CLOSE_SECONDS, DYING_SECONDS

_LOG_SECONDS = 1.0
"""How long the last lines of a log are waited for; its node may be gone as well."""


class RayGroup:
    """A device made of Ray actors, one for each rank. It fails as a `WorkerGroup` does.

    Attributes:
        spec: what rank 0 serves.
        lost: why the ranks are gone, once they are; set by a thread of its own while nobody calls.
    """

    spec: Spec

    def __init__(self, module: str, plan: Plan, placement: Placement, progress: Progress = silent) -> None:
        """Place the ranks and load the model; returns when every rank is ready.

        Args:
            module: importable name of the device module, on every node.
            plan: what to load, options included; the model's folder must be there on every node.
            placement: number of ranks, what each takes of its node, environment and time limits.
            progress: told how rank 0 loads, on the calling thread.

        Raises:
            DeviceUnavailable: Ray is not installed, or cannot be started or reached.
            PlanRejected: the cluster has no room, or the plan wants what Ray does not do.
            DeviceLost: a rank died or raised an error that is not one of this package.
            AccelError: whatever a rank's `load` raised.
        """
        if placement.python:
            msg = (
                f"python={placement.python!r} and placement='ray' exclude each other: Ray starts ranks in the "
                "interpreter that its node was started with, so start the nodes from that environment"
            )
            raise PlanRejected(msg)
        self.lost: DeviceLost | None = None
        self._placement, self._process, self._closed = placement, os.getpid(), False
        self._losing, self._calling = threading.Lock(), threading.Lock()
        self._ray = connect()
        self._seats: list[Seat] = []
        self._watch: RayWatch | None = None
        self._group = reserve(self._ray, placement)
        self._finalizer = weakref.finalize(self, _release, self._ray, self._seats, self._group, self._process)
        # Ray's own exit handler is older than this one, so it runs later.
        self._exit = partial(_at_exit, weakref.ref(self))
        atexit.register(self._exit)
        try:
            self._seats += start(self._ray, placement, self._group)
            lose, orders = self._lose, [order(module, plan, seat.rank) for seat in self._seats]
            self._calls = RayCalls(self._ray, self._seats, lose, progress)
            self._watch = RayWatch(self._ray, self._seats, _telling(weakref.ref(self)))
            self.spec = self._load(orders)
        except BaseException:
            self._end(0)
            raise

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
            first = self._seats[0]
            together = first.rank.local_size == first.rank.size
            host = "127.0.0.1" if together else first.where.host
            address = self._calls.ask(Kind.MEET, {0: host}, seconds)[0][0].text
            for each in orders:
                each["rank"]["address"] = address
        texts = {index: json.dumps(each) for index, each in enumerate(orders)}
        loaded = self._calls.ask(Kind.LOAD, texts, seconds)
        specs = [spec_of(json.loads(loaded[index][0].text)) for index in texts]
        for index, spec in enumerate(specs):
            if spec != specs[0]:
                raise self._lose(index, f"loaded a device that differs from rank 0's: {spec} and {specs[0]}")
        return specs[0]

    def _step(self, kind: Kind, *arrays: IntArray) -> Logits:
        logits = self._run(kind, *arrays)
        assert logits is not None, "every step has logits"
        return logits

    def _run(self, kind: Kind, *arrays: IntArray) -> Logits | None:
        with self._calling:
            if self._closed or os.getpid() != self._process:
                msg = "the device is closed, or belongs to the process this one was forked from"
                raise EngineClosed(msg)
            if self.lost is not None:
                raise DeviceLost(*self.lost.args)
            everybody = dict.fromkeys(range(len(self._seats)), "")
            return self._calls.ask(kind, everybody, self._placement.step_seconds, arrays)[0][1]

    def _lose(self, index: int, why: str) -> DeviceLost:
        """Note the first loss, end all ranks, and return the error to raise."""
        with self._losing:
            if self.lost is None:
                seat, log = self._seats[index], ""
                with suppress(self._ray.exceptions.RayError):
                    log = self._ray.get(seat.lookout.last_lines.remote(index), timeout=_LOG_SECONDS)
                self.lost = DeviceLost(
                    f"rank {index} of {len(self._seats)} (process {seat.where.pid} on node {seat.where.host}) {why}; "
                    + (f"the last lines of its log:{log}" if log else "its log is empty, or gone with its node")
                )
                _kill(self._ray, self._seats)
        return DeviceLost(*self.lost.args)

    def _end(self, seconds: float) -> None:
        """End the ranks: politely for `seconds`, then not."""
        self._closed = True
        atexit.unregister(self._exit)
        if self._watch is not None:
            self._watch.stop()  # before they end as they should
        if seconds and self.lost is None and self._ray.is_initialized():
            frame = encode(Frame(Kind.CLOSE, 0))
            closing = [seat.actor.run.remote(frame) for seat in self._seats]
            self._ray.wait(closing, num_returns=len(closing), timeout=seconds)
        self._finalizer()

    def leave(self) -> None:
        """The interpreter is about to end: wait for a step, but not for long and for no load."""
        if self._calling.acquire(timeout=CLOSE_SECONDS if hasattr(self, "spec") else 0):
            self._calling.release()
            if hasattr(self, "spec"):
                self.close()
                return
        self._closed = True
        self._finalizer()


def _kill(ray: Any, seats: Sequence[Seat]) -> list[Any]:
    """Kill all ranks, and return what to wait for until they are gone."""
    for seat in seats:
        ray.kill(seat.actor)
    return [lookout.kill.remote(DYING_SECONDS) for lookout in _lookouts(seats)]


def _lookouts(seats: Sequence[Seat]) -> list[Any]:
    """Return one handle for each node."""
    return list({seat.where.node: seat.lookout for seat in seats}.values())


def _release(ray: Any, seats: Sequence[Seat], group: Any, process: int) -> None:
    """Kill the actors and give their places back; also for a group that was dropped without `close`."""
    if os.getpid() != process or not ray.is_initialized():
        return
    from ray.util.placement_group import remove_placement_group

    if gone := _kill(ray, seats):
        ray.wait(gone, num_returns=len(gone), timeout=DYING_SECONDS)
    for lookout in _lookouts(seats):
        ray.kill(lookout)
    remove_placement_group(group)


def _telling(group: weakref.ref[RayGroup]) -> Callable[[int, str], None]:
    """Return what a watch calls; it does not keep the group alive."""

    def lost(index: int, why: str) -> None:
        if (alive := group()) is not None:
            alive._lose(index, why)  # noqa: SLF001 - part of it

    return lost


def _at_exit(group: weakref.ref[RayGroup]) -> None:
    if (alive := group()) is not None:
        alive.leave()
