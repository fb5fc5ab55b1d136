"""Starts troubled groups, and looks for what they leave behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langchain_accel.devices.base import Plan, Progress, silent
from langchain_accel.runtime.workers import WorkerGroup
from tests.workers import troubled

GUARD = 60.0
"""Seconds after which a test that waits for something gives up."""

FAR = 10_000
"""A number of calls that is never reached."""


def plan_for(model: Path, size: int = 2, **options: Any) -> Plan:
    return Plan(
        "reference",
        str(model),
        rows=4,
        max_len=64,
        tensor_parallel_size=size,
        options=troubled.Options(**options),
    )


def open_group(model: Path, size: int = 2, progress: Progress = silent, **options: Any) -> WorkerGroup:
    plan = plan_for(model, size, **options)
    return WorkerGroup("tests.workers.troubled", plan, troubled.placement(plan, plan.options), progress)


def ints(*values: Any) -> Any:
    return np.array(values, np.int64)


def prefill(group: Any) -> Any:
    return group.prefill(np.zeros((1, 8), np.int64), ints(3), ints(0), ints(0))


def decode(group: Any) -> Any:
    return group.decode(ints(5), ints(3), ints(0))


CALLS: dict[str, Callable[[Any], Any]] = {
    "prefill": prefill,
    "decode": decode,
    "verify": lambda group: group.verify(ints([5, 6]), ints(2), ints(3), ints(0)),
    "copy_row": lambda group: group.copy_row(0, 1, 2),
    "forget": lambda group: group.forget(1),
    "close": lambda group: group.close(),
}


def pids(group: WorkerGroup) -> list[int]:
    return [rank.pid for rank in group._ranks]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped is not gone."""
    return not Path(f"/proc/{pid}").exists()


def dead(pid: int) -> bool:
    """Whether a process has ended, reaped or not: a child of a dead parent is reaped by whoever inherits it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in ("Z", "X")


def eventually(condition: Callable[[], bool], seconds: float = GUARD) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"it has not come true in {seconds:.0f} seconds")
        time.sleep(0.01)


def known(folder: Path, ranks: int = 2) -> list[dict[str, Any]]:
    """What each rank has told of itself, once all have."""
    files = [folder / f"{index}.json" for index in range(ranks)]
    eventually(lambda: all(file.exists() for file in files))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def descriptors() -> set[str]:
    """What this process has open, sockets and anonymous memory included."""
    opened: set[str] = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the folder's own
            opened.add(f"{entry.name} {entry.readlink()}")
    return {entry for entry in opened if "/proc/" not in entry}
