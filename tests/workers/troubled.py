"""The reference device with troubles: a device module whose ranks fail where and how its options say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from langchain_accel.devices import reference
from langchain_accel.devices.base import Device, Placement, Plan, Progress, Rank
from langchain_accel.errors import DeviceLost, PlanRejected


@dataclass(frozen=True, slots=True)
class Options:
    """Which trouble comes where.

    Attributes:
        trouble: a key of `TROUBLES`; empty: none.
        at: the call it comes with: load, prefill, decode, verify, copy_row, forget or close.
        after: that many such calls go well first.
        ranks: who has it.
        seconds: how long some troubles last.
        copies_logits: return arrays of its own, as a device does that cannot compute into a given place.
        python: the ranks' interpreter.
        step_seconds: longest step.
        folder: where each rank leaves what it knows about itself, as `<rank>.json`, and `<rank>.in_trouble`.
    """

    trouble: str = ""
    at: str = "load"
    after: int = 0
    ranks: tuple[int, ...] = (0,)
    seconds: float = 0.0
    copies_logits: bool = False
    python: str | None = None
    step_seconds: float = 60.0
    folder: str = ""


def raise_value_error(options: Options) -> NoReturn:
    print("this goes to the log")
    msg = "a bit fell over"
    raise ValueError(msg)


def raise_rejection(options: Options) -> NoReturn:
    msg = "not on this rank"
    raise PlanRejected(msg)


def raise_lost(options: Options) -> NoReturn:
    msg = "the card fell out"
    raise DeviceLost(msg)


def hold(options: Options) -> None:
    """Compute without letting any other thread run, as a compiler inside a library may."""
    sys.setswitchinterval(1000)
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end:
        pass
    sys.setswitchinterval(0.005)


def speak_nonsense(options: Options) -> None:
    os.write(json.loads(sys.argv[1])["socket"], b"what a lovely day to send something else than a frame")
    time.sleep(60)


def write_much(options: Options) -> None:
    for number in range(200_000):
        print(f"line {number} of a talkative device", file=sys.stderr)


def start_a_child(options: Options) -> None:
    """Start a process, as a compiler of graphs would."""
    child = subprocess.Popen(["sleep", "3600"])
    partial = Path(options.folder) / "child.partial"
    partial.write_text(str(child.pid), encoding="utf-8")
    partial.rename(Path(options.folder) / "child")


TROUBLES: dict[str, Callable[[Options], Any]] = {
    "raise": raise_value_error,
    "reject": raise_rejection,
    "lost": raise_lost,
    "kill": lambda options: os.kill(os.getpid(), signal.SIGKILL),
    "segv": lambda options: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda options: os._exit(7),
    "system exit": lambda options: sys.exit(3),
    "stop": lambda options: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda options: time.sleep(options.seconds),
    "hold": hold,
    "nonsense": speak_nonsense,
    "write": write_much,
    "child": start_a_child,
    "float64": lambda options: None,
}


class Troubled:
    """A reference device that counts its calls and runs into trouble at one of them."""

    def __init__(self, device: Any, options: Options, rank: Rank) -> None:
        self.spec = device.spec
        self._device, self._options, self._rank = device, options, rank
        self._calls = 0
        if not options.copies_logits:
            self.logits_into = device.logits_into

    def __getattr__(self, name: str) -> Any:
        if name == "logits_into":
            raise AttributeError(name)
        method = getattr(self._device, name)

        def call(*arguments: Any) -> Any:
            in_trouble = self.meet(name)
            result = method(*arguments)
            return result.astype(np.float64) if in_trouble and self._options.trouble == "float64" else result

        return call

    def meet(self, name: str) -> bool:
        """Have the trouble that this call brings; return whether there was any."""
        options = self._options
        if not options.trouble or name != options.at or self._rank.index not in options.ranks:
            return False
        self._calls += 1
        if self._calls != options.after + 1:
            return False
        if options.folder:
            (Path(options.folder) / f"{self._rank.index}.in_trouble").touch()
        TROUBLES[options.trouble](options)
        return True


def placement(plan: Plan, options: Options) -> Placement:
    return Placement(
        ranks=plan.tensor_parallel_size, isolated=True, python=options.python, step_seconds=options.step_seconds
    )


def load(plan: Plan, options: Options, rank: Rank, progress: Progress) -> Device:
    if options.folder:
        known = {
            "pid": os.getpid(),
            "rank": [rank.index, rank.size, rank.local_index, rank.local_size, rank.address],
            "cores": sorted(os.sched_getaffinity(0)),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "path": sys.path,
            "modules": sorted(sys.modules),
            "python": sys.version_info[:2],
            "main_thread": threading.current_thread() is threading.main_thread(),
            "session": os.getsid(0),
        }
        partial = Path(options.folder) / f"{rank.index}.partial"
        partial.write_text(json.dumps(known), encoding="utf-8")
        partial.rename(Path(options.folder) / f"{rank.index}.json")
    troubled = Troubled.__new__(Troubled)
    troubled._options, troubled._rank, troubled._calls = options, rank, 0
    troubled.meet("load")
    device = reference.load(plan, reference.Options(), rank, progress)
    return Troubled(device, options, rank)  # type: ignore[return-value]
