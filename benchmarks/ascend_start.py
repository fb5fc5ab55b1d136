"""How long a model takes to start on Ascend, the first time and with its compiled graphs on disk.

    python benchmarks/ascend_start.py --model path/to/model [--target cpu] [--python path/to/bin/python] [--rows 4]

Each start is a process of its own, from nothing to warmed up. Without `--cache-dir` the first start finds no graphs.
"""

from __future__ import annotations

import argparse
import tempfile
import time

from langchain_accel.devices import ascend
from langchain_accel.devices.base import Plan
from langchain_accel.runtime.runner import Runner
from langchain_accel.runtime.workers import WorkerGroup


def start(plan: Plan) -> float:
    """Load and warm up; return the seconds that took."""
    began = time.perf_counter()
    group = WorkerGroup("langchain_accel.devices.ascend", plan, ascend.placement(plan, plan.options))
    try:
        Runner(group).warmup()
        return time.perf_counter() - began
    finally:
        group.close()


def main() -> None:
    """Start twice and print both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--target", default="ascend", choices=("ascend", "cpu"))
    parser.add_argument("--python")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--max-len", type=int, default=256)
    parser.add_argument("--cache-dir", default=tempfile.mkdtemp(prefix="ascend-graphs-"))
    asked = parser.parse_args()
    options = ascend.Options(target=asked.target, python=asked.python, cache_dir=asked.cache_dir)
    plan = Plan("ascend", asked.model, rows=asked.rows, max_len=asked.max_len, options=options)
    for which in ("first", "second"):
        print(f"{which} start: {start(plan):.1f} s")


if __name__ == "__main__":
    main()
