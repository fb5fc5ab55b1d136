"""What a group of ranks costs per decode step: the protocol alone, on a device that computes nothing.

    python benchmarks/group_overhead.py [--ranks 2] [--rows 32] [--vocab 32000] [--steps 2000] [--repeats 5]

Two null devices: one writes its logits where the group asks it to (`logits_into`), as a device does whose last
operation may choose its output; the other returns an array of its own, which the group copies into shared memory. The
same call on the device itself, in this process, is subtracted. Every step's logits are looked at, at both ends.
Milliseconds of wall time per step, the median of the repeats with the fastest and slowest. The goal is 0.3 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from langchain_accel.devices.base import Device, IntArray, Logits, Placement, Plan, Progress, Rank, Spec
from langchain_accel.runtime.workers import WorkerGroup

GOAL_MS = 0.3


@dataclass(frozen=True, slots=True)
class Options:
    """Width of the logits, and whether they are computed in place."""

    vocab: int = 32_000
    in_place: bool = True


class NullDevice:
    """Answers every step with the same logits but one, which is the token it was given."""

    def __init__(self, plan: Plan, options: Options) -> None:
        self.spec = Spec(
            rows=plan.rows,
            max_len=plan.max_len,
            vocab_size=options.vocab,
            prefill_shapes=((1, 16),),
            decode_shapes=(plan.rows,),
        )
        self._logits = np.random.default_rng(0).normal(size=(plan.rows, options.vocab)).astype(np.float32)
        if options.in_place:
            self.logits_into = self._into

    def _into(self, room: Logits) -> None:
        room = room.reshape(self._logits.shape)
        room[:] = self._logits
        self._logits = room

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Logits:
        """Return the same logits, marked with the first token."""
        self._logits[0, 0] = tokens[0]
        return self._logits

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """Return as many of the same logits."""
        return self._logits[: len(rows)]

    verify = prefill

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy nothing."""

    def forget(self, row: int) -> None:
        """Forget nothing."""

    def close(self) -> None:
        """Release nothing."""


def load(plan: Plan, options: Options, rank: Rank, progress: Progress) -> Device:
    """Return a null device; the ranks import this very file."""
    return NullDevice(plan, options)


def per_step(device: Device, steps: int) -> float:
    """Return milliseconds per decode step of all rows."""
    rows = np.arange(device.spec.rows)
    begin = time.perf_counter()
    for step in range(steps):
        logits = device.decode(np.full(len(rows), step), np.full(len(rows), step % device.spec.max_len), rows)
        assert logits[0, 0] == step
    return (time.perf_counter() - begin) / steps * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()

    def opened(*, in_place: bool) -> tuple[Plan, WorkerGroup]:
        plan = Plan("null", "none", rows=args.rows, options=Options(args.vocab, in_place))
        return plan, WorkerGroup("group_overhead", plan, Placement(ranks=args.ranks))

    (plan, in_place), (_, copied) = opened(in_place=True), opened(in_place=False)
    devices: dict[str, Device] = {
        "in this process": NullDevice(plan, plan.options),
        "logits in place": in_place,
        "logits copied": copied,
    }
    figures: dict[str, list[float]] = {name: [] for name in devices}
    for _ in range(args.repeats):
        for name, device in devices.items():  # interleaved: the machine's speed drifts
            figures[name].append(per_step(device, args.steps))
    for device in devices.values():
        device.close()
    if args.json:
        print(json.dumps({**vars(args), "ms_per_step": figures}))
        return
    print(f"{args.ranks} ranks, {args.rows} rows, vocabulary {args.vocab}, {args.steps} steps, {args.repeats} repeats")
    print("milliseconds per decode step: median (fastest-slowest)")
    middle: Callable[[str], float] = lambda name: statistics.median(figures[name])  # noqa: E731 - a short name
    for name, ms in figures.items():
        print(f"{name:20} {middle(name):.3f} ({min(ms):.3f}-{max(ms):.3f})")
    cost = middle("logits in place") - middle("in this process")
    print(f"goal: {GOAL_MS} ms of protocol per step: {'met' if cost <= GOAL_MS else 'MISSED'} with {cost:.3f} ms")


if __name__ == "__main__":
    main()
