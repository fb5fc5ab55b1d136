"""What this machine's processors are good at, and how many of them this process may use."""

from __future__ import annotations

import os
from collections.abc import Collection
from math import ceil
from pathlib import Path

from langchain_accel.devices.memory import control_groups

_FAST_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})


def fastest_dtype(flags: Collection[str]) -> str:
    """Return the dtype a processor computes fastest: bfloat16 only where it has instructions for it."""
    return "bfloat16" if _FAST_BFLOAT16.intersection(flags) else "float32"


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Return the processor's feature flags, in Linux's spelling; none where they cannot be read."""
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), ()))


def cores(root: Path = Path("/"), ranks: int = 1) -> int:
    """Return how many cores this process may keep busy.

    That is the processors it is allowed on, counting hyperthreads of one core once, within the time its control
    groups grant and within `OMP_NUM_THREADS`.

    Args:
        root: where `proc` and `sys` are.
        ranks: processes that share the time which the control groups grant.
    """
    allowed = os.sched_getaffinity(0)
    count = len({siblings(processor, root) for processor in allowed})
    for group in control_groups("cpu", root):
        granted = _granted(group)
        count = min(count, max(1, granted // ranks) if granted else count)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(count, int(asked)) if asked.isdecimal() and int(asked) else count


def siblings(processor: int, root: Path) -> str:
    """Name the physical core of a processor by the processors on it; each is its own where that cannot be read."""
    path = root / f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(processor)


def _granted(group: Path) -> int | None:
    """Cores' worth of time that a control group grants, rounded up; None without a limit."""
    try:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
    except OSError:
        try:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota.strip() in ("max", "-1") else max(1, ceil(int(quota) / int(period)))
