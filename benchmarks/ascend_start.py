"""How long a model takes to start on Ascend, the first time and with its compiled graphs on disk, and then for a step.

    python benchmarks/ascend_start.py --model path/to/model [--target cpu] [--python path/to/bin/python] [--ranks 2]

Each start is a set of processes of its own, from nothing to warmed up; the first one finds no graphs. A step decodes
every row at its last column; the fastest of several counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np

from langchain_accel.devices import ascend
from langchain_accel.devices.base import Plan
from langchain_accel.runtime.runner import Runner
from langchain_accel.runtime.workers import WorkerGroup

STEPS = 20


def start(plan: Plan) -> tuple[float, float]:
    """Load and warm up; return the seconds that took, and those of the fastest step."""
    began = time.perf_counter()
    group = WorkerGroup("langchain_accel.devices.ascend", plan, ascend.placement(plan, plan.options))
    try:
        Runner(group).warmup()
        warm = time.perf_counter() - began
        rows = np.arange(plan.rows)
        times = []
        for _ in range(STEPS):
            began = time.perf_counter()
            group.decode(np.ones_like(rows), np.full_like(rows, plan.max_len - 1), rows)
            times.append(time.perf_counter() - began)
        return warm, min(times)
    finally:
        group.close()


def main() -> None:
    """Start twice and print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--target", default="ascend", choices=("ascend", "cpu"))
    parser.add_argument("--python")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--max-len", type=int, default=256)
    parser.add_argument("--ranks", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ascend-graphs-") as graphs:
        options = ascend.Options(target=asked.target, python=asked.python, cache_dir=graphs)
        plan = Plan(
            "ascend",
            asked.model,
            rows=asked.rows,
            max_len=asked.max_len,
            tensor_parallel_size=asked.ranks,
            options=options,
        )
        for which in ("first", "second"):
            seconds, step = start(plan)
            print(f"{which} start: {seconds:.1f} s; decoding {asked.rows} rows: {1000 * step:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
