"""One model in one process, and the same model over two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from langchain_accel.devices import xeon
from langchain_accel.devices.base import Device, Plan, Progress, silent
from langchain_accel.runtime.workers import WorkerGroup

OPTIONS = xeon.Options(threads=1, prefill_chunk=32, shared_memory=False)
MODULE = "langchain_accel.devices.xeon"


def plan(folder: Path, ranks: int = 2, **changes: object) -> Plan:
    entries = {"rows": 4, "max_len": 64, "dtype": "float32", "options": OPTIONS, **changes}
    return Plan("xeon", str(folder), tensor_parallel_size=ranks, **entries)  # type: ignore[arg-type]


def alone(folder: Path, **changes: object) -> Device:
    one = plan(folder, 1, **changes)
    return xeon.load(one, one.options)


def together(folder: Path, progress: Progress = silent, **changes: object) -> WorkerGroup:
    two = plan(folder, **changes)
    return WorkerGroup(MODULE, two, xeon.placement(two, two.options), progress)
