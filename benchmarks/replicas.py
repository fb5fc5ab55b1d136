"""What replicas bring: requests per second on a device that sleeps, with one replica and with several.

    python benchmarks/replicas.py [--replicas 2] [--rows 4] [--requests 48] [--tokens 16] [--step-ms 20] [--repeats 3]

A step of the device takes the same time whatever it is asked to do, and uses no processor: what is measured is whether
replicas work side by side, with their processes, threads and routing. Each replica is a process of its own. The goal is
1.7 times the answers of one replica with two. A second run sends conversations of several turns, so that each prompt
begins with the one before, and prints how many of their tokens were taken from the KV cache: of those that could be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass

import numpy as np

from langchain_accel.devices.base import Device, IntArray, Logits, Placement, Plan, Progress, Rank, Spec
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.replicas import Replicas
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.workers import WorkerGroup

GOAL = 1.7
VOCABULARY = 256
TURNS, TURN_TOKENS = 4, 32


@dataclass(frozen=True, slots=True)
class Options:
    """How long a step takes."""

    step_ms: float = 20.0


class SleepingDevice:
    """Sleeps in every step, and answers it with the same logits."""

    def __init__(self, plan: Plan, options: Options) -> None:
        self.spec = Spec(
            rows=plan.rows,
            max_len=plan.max_len,
            vocab_size=VOCABULARY,
            prefill_shapes=((1, 32), (1, 128)),
            decode_shapes=(plan.rows,),
            resumes=True,
            copies=True,
        )
        self._seconds = options.step_ms / 1000
        self._logits = np.zeros((plan.rows, VOCABULARY), np.float32)

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Logits:
        """Sleep."""
        time.sleep(self._seconds)
        return self._logits[: len(rows)]

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """Sleep."""
        time.sleep(self._seconds)
        return self._logits[: len(rows)]

    verify = prefill

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy nothing."""

    def forget(self, row: int) -> None:
        """Forget nothing."""

    def close(self) -> None:
        """Release nothing."""


class Letters:
    """A tokenizer without a model."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Return a letter per token."""
        return "x" * len(ids)


def load(plan: Plan, options: Options, rank: Rank, progress: Progress) -> Device:
    """Return a sleeping device; the ranks import this very file."""
    return SleepingDevice(plan, options)


def opened(size: int, rows: int, step_ms: float) -> Replicas:
    """Return so many replicas, each in a process of its own."""
    plan = Plan("sleeping", "none", rows=rows, max_len=1024, options=Options(step_ms))

    def engine(index: int) -> Engine:
        def device(progress: Progress) -> Device:
            return WorkerGroup("replicas", plan, Placement(isolated=True), progress, (index, size))

        return Engine(device, Letters(), eos_ids=frozenset())

    return Replicas(engine, size, lambda index, engine: None)


def throughput(replicas: Replicas, requests: int, tokens: int) -> float:
    """Return answers per second of prompts that share nothing, all sent at once."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    chance = np.random.default_rng(0)
    begin = time.perf_counter()
    streams = [replicas.submit(chance.integers(1, VOCABULARY, 16).tolist(), params) for _ in range(requests)]
    for stream in streams:
        assert len(stream.result().tokens) == tokens
    return requests / (time.perf_counter() - begin)


def conversations(replicas: Replicas) -> tuple[int, int]:
    """Hold as many conversations as there are rows, in turns; return the tokens reused, and those that could be."""
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    chance = np.random.default_rng(1)
    before = replicas.stats().reused_tokens
    talks: list[list[int]] = [[] for _ in range(replicas.stats().rows)]
    for _ in range(TURNS):
        for talk in chance.permutation(len(talks)):
            talks[talk] += chance.integers(1, VOCABULARY, TURN_TOKENS).tolist()
            replicas.submit(talks[talk], params).result()
    possible = len(talks) * TURN_TOKENS * sum(range(TURNS))
    return replicas.stats().reused_tokens - before, possible


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    sizes = (1, args.replicas)
    doors = {size: opened(size, args.rows, args.step_ms) for size in sizes}
    figures: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(args.repeats):
        for size, door in doors.items():  # interleaved: the machine's speed drifts
            figures[size].append(throughput(door, args.requests, args.tokens))
    reused, possible = conversations(doors[args.replicas])
    for door in doors.values():
        door.close()
    if args.json:
        print(json.dumps({**vars(args), "answers_per_second": figures, "reused": reused, "possible": possible}))
        return
    print(f"{args.requests} requests of {args.tokens} tokens, {args.rows} rows per replica, {args.step_ms} ms per step")
    for size, each in figures.items():
        print(f"{size} replicas: {statistics.median(each):.2f} answers/s ({min(each):.2f}-{max(each):.2f})")
    gain = statistics.median(figures[args.replicas]) / statistics.median(figures[1])
    print(f"goal: {GOAL} times as many: {'met' if gain >= GOAL else 'MISSED'} with {gain:.2f}")
    print(f"conversations: {reused} of {possible} tokens that stood in some replica's KV cache were reused")


if __name__ == "__main__":
    main()
