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

from langchain_accel.devices.base import Device, Plan, Progress, Rank, silent
from langchain_accel.errors import DeviceUnavailable
from langchain_accel.runtime.checkpoint import Checkpoint, open_checkpoint, resolve
from langchain_accel.runtime.engine import Engine

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
    """One plan's engine. The lock is held while it loads, so that a plan is loaded once and plans load side by side."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    engine: Engine | None = None
    checkpoint: Checkpoint | None = None


_entries: dict[Plan, _Entry] = {}
_entries_lock = threading.RLock()  # a finaliser may run, and come here, while the same thread holds it


class Lease:
    """One user's hold on a shared engine. The engine closes when its last lease is closed or collected."""

    def __init__(self, plan: Plan, entry: _Entry) -> None:
        assert entry.engine is not None
        assert entry.checkpoint is not None
        self.engine: Engine = entry.engine
        self.checkpoint: Checkpoint = entry.checkpoint
        self._release = weakref.finalize(self, partial(_release, plan, entry, wait=False))
        self._release.atexit = False  # at interpreter exit the engine closes itself
        self._close = partial(_release, plan, entry, wait=True)

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
    """
    module = find(plan.device)
    plan = replace(plan, model=str(resolve(plan.model, plan.revision)), revision=None)
    with _entries_lock:
        entry = _entries.setdefault(plan, _Entry())
        entry.users += 1
    try:
        with entry.lock:
            if entry.engine is None or entry.engine.closed:
                if entry.engine is not None:
                    entry.engine.close()  # a lost engine may be releasing the device still
                entry.checkpoint = open_checkpoint(Path(plan.model), trust_remote_code=plan.trust_remote_code)
                entry.engine = Engine(
                    partial(_load, module, plan),
                    entry.checkpoint.tokenizer,
                    eos_ids=entry.checkpoint.eos_ids,
                    queue_limit=plan.queue_limit,
                    progress=progress,
                )
            return Lease(plan, entry)
    except BaseException:
        _release(plan, entry, wait=True)
        raise


def _load(module: str, plan: Plan, progress: Progress) -> Device:
    device = import_module(module)
    loaded: Device = device.load(plan, plan.options or device.Options(), Rank(), progress)
    return loaded


def _release(plan: Plan, entry: _Entry, *, wait: bool) -> None:
    with _entries_lock:
        entry.users -= 1
        if entry.users:
            return
        if _entries.get(plan) is entry:
            del _entries[plan]
    if entry.engine is not None:
        entry.engine.close(wait=wait)


def _forget_parents_engines() -> None:
    """After a fork the child has no engine threads: what it needs, it loads itself."""
    global _entries_lock  # noqa: PLW0603 - another thread of the parent may have held it
    _entries_lock = threading.RLock()
    _entries.clear()


os.register_at_fork(after_in_child=_forget_parents_engines)
