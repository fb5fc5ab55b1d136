"""Device names, and the engines of this process: one for each distinct plan, shared and reference-counted."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langchain_accel.devices.base import Device, Placement, Plan, Progress, Rank, silent
from langchain_accel.errors import DeviceLost, DeviceUnavailable
from langchain_accel.runtime.checkpoint import Checkpoint, open_checkpoint, resolve
from langchain_accel.runtime.door import Door
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.ray_group import RayGroup
from langchain_accel.runtime.replicas import Replicas
from langchain_accel.runtime.restarts import Restarts
from langchain_accel.runtime.workers import WorkerGroup

DEVICES = ("xeon", "gaudi", "inferentia", "ascend", "reference")


def find(device: str) -> str:
    """Return the module of a device, without importing it.

    Raises:
        DeviceUnavailable: this release has no such device.
    """
    module = f"langchain_accel.devices.{device}"
    if device in DEVICES and find_spec(module) is not None:
        return module
    here = ", ".join(name for name in DEVICES if find_spec(f"langchain_accel.devices.{name}") is not None)
    extra = f' (its software installs with: pip install "langchain-accel[{device}]")' if device in DEVICES else ""
    msg = f"the device {device!r} is not in this release of langchain-accel, which has {here}{extra}"
    raise DeviceUnavailable(msg)


@dataclass(eq=False)
class _Entry:
    """One plan's engine. The lock is held while it loads, so that a plan is loaded once and plans load side by side.

    Attributes:
        users: callers of `shared` that are in it, and leases.
        leases: of those, leases on `engine`; one on an engine that was lost, which an error's traceback may keep for
            long, does not count.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    leases: int = 0
    engine: Door | None = None
    checkpoint: Checkpoint | None = None


_entries: dict[Plan, _Entry] = {}
_restarts = Restarts()
_entries_lock = threading.RLock()  # a finaliser may run, and come here, while the same thread holds it


class Lease:
    """One user's hold on a shared engine. The engine closes when its last lease is closed or collected."""

    def __init__(self, plan: Plan, entry: _Entry) -> None:
        assert entry.engine is not None
        assert entry.checkpoint is not None
        self.engine: Door = entry.engine
        self.checkpoint: Checkpoint = entry.checkpoint
        entry.leases += 1
        self._release = weakref.finalize(self, partial(_release, plan, entry, entry.engine, wait=False))
        self._release.atexit = False  # at interpreter exit the engine closes itself
        self._close = partial(_release, plan, entry, entry.engine, wait=True)

    def close(self) -> None:
        """Let go of the engine; waits for its end if this was the last lease. Idempotent."""
        if self._release.detach() is not None:
            self._close()

    @property
    def closed(self) -> bool:
        """Whether the engine behind this lease no longer serves."""
        return not self._release.alive or self.engine.closed

    def __deepcopy__(self, memo: dict[int, Any]) -> Lease:
        """A copy of a model object shares the engine."""
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A pickled model object takes no engine along: it loads again where it is unpickled."""
        return type(None), ()


def shared(plan: Plan, progress: Progress = silent) -> Lease:
    """Return a lease on the one engine of this plan, loading it first if need be.

    Threads that ask for the same plan meanwhile wait for the same load; a load that fails is forgotten.

    Raises:
        AccelError: the plan, the model or the device cannot be used.
        DeviceLost: the device was lost while it loaded, or too often in a row.
    """
    module = find(plan.device)
    plan = replace(plan, model=str(resolve(plan.model, plan.revision)), revision=None)
    with _entries_lock:
        entry = _entries.setdefault(plan, _Entry())
        entry.users += 1
    try:
        with entry.lock:
            if entry.engine is None or entry.engine.closed:
                with _entries_lock:
                    entry.users, entry.leases = entry.users - entry.leases, 0
                    lost, entry.engine = entry.engine, None
                _retire(plan, lost, wait=True)  # it may be releasing the device still
                entry.checkpoint = open_checkpoint(Path(plan.model), trust_remote_code=plan.trust_remote_code)
                entry.engine = _engine(module, plan, entry.checkpoint, progress)
            with _entries_lock:
                return Lease(plan, entry)
    except BaseException:
        _release(plan, entry, None, wait=True)
        raise


def engines() -> list[tuple[Plan, Door]]:
    """Return what this process has loaded: each plan, its model a folder, with its engine."""
    with _entries_lock:
        return [(plan, entry.engine) for plan, entry in _entries.items() if entry.engine is not None]


def _engine(module: str, plan: Plan, checkpoint: Checkpoint, progress: Progress) -> Door:
    """Load a plan's engine, or its replicas."""

    def load(replica: int) -> Engine:
        _restarts.check((plan, replica))
        try:
            return Engine(
                partial(_load, module, plan, replica),
                checkpoint.tokenizer,
                eos_ids=checkpoint.eos_ids,
                queue_limit=-(-plan.queue_limit // plan.replicas),
                progress=progress,
            )
        except DeviceLost as error:
            _restarts.lost((plan, replica), error, served=False)
            raise

    def lost(replica: int, engine: Engine) -> None:
        _account((plan, replica), engine)

    return load(0) if plan.replicas == 1 else Replicas(load, plan.replicas, lost)


def _load(module: str, plan: Plan, replica: int, progress: Progress) -> Device:
    """Load a device: in this process, or in processes of its own where its module's `placement` says so, or the plan.

    Replicas on one machine compute side by side: each gets its own share of the cores.
    """
    device = import_module(module)
    plan = replace(plan, options=plan.options or device.Options())
    place: Placement = device.placement(plan, plan.options) if hasattr(device, "placement") else Placement()
    if plan.placement == "ray":
        return RayGroup(module, plan, place, progress)
    if plan.replicas > 1:
        place = replace(place, isolated=True, pinned=True)
    if place.ranks > 1 or place.isolated or place.python:
        return WorkerGroup(module, plan, place, progress, (replica, plan.replicas))
    loaded: Device = device.load(plan, plan.options, Rank(), progress)
    return loaded


def _release(plan: Plan, entry: _Entry, leased: Door | None, *, wait: bool) -> None:
    """Let go of an entry: a lease on `leased`, or a caller that got none."""
    with _entries_lock:
        if leased is not None:
            if leased is not entry.engine:
                return  # it was lost, and its leases count no longer
            entry.leases -= 1
        entry.users -= 1
        if entry.users:
            return
        if _entries.get(plan) is entry:
            del _entries[plan]
        engine, entry.engine = entry.engine, None
    _retire(plan, engine, wait=wait)


def _retire(plan: Plan, engine: Door | None, *, wait: bool) -> None:
    """Close an engine, if there is one, and remember whether its device was lost."""
    if engine is None:
        return
    engine.close(wait=wait)
    engines = engine.engines if isinstance(engine, Replicas) else [engine]
    for replica, each in enumerate(engines):
        _account((plan, replica), each)


def _account(key: tuple[Plan, int], engine: Door) -> None:
    served = engine.stats().finished > 0
    if (lost := engine.lost) is not None:
        _restarts.lost(key, lost, served=served)
    elif served:
        _restarts.forgive(key)


def _forget_parents_engines() -> None:
    """After a fork the child has no engine threads: what it needs, it loads itself."""
    global _entries_lock, _restarts
    _entries_lock, _restarts = threading.RLock(), Restarts()
    _entries.clear()


os.register_at_fork(after_in_child=_forget_parents_engines)
