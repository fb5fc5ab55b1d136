"""What the runtime itself costs per decode step, on a device that computes nothing.

    python benchmarks/host_overhead.py [--rows 32] [--vocab 32000] [--steps 300] [--repeats 7]

Every row is busy; the answer's text is made and handed out as in service. Three kinds of consumer: threads that wait
for the whole answer (`invoke`, `batch`), threads that stream, and tasks of one event loop that stream. Reported are
the engine thread's own CPU time per step, the process's CPU time per step (consumers included) and wall time per
step, each the median over the repeats with the fastest and slowest. The goal is 1.5 ms per step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from langchain_accel.devices.base import IntArray, Logits, Progress, Spec
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import SamplingParams

GOAL_MS = 1.5


class NullDevice:
    """Answers every step with the same random logits; notes the CPU time of the thread that calls it."""

    def __init__(self, rows: int, vocab_size: int, max_len: int) -> None:
        self.spec = Spec(
            rows=rows,
            max_len=max_len,
            vocab_size=vocab_size,
            prefill_shapes=((1, 16),),
            decode_shapes=tuple(range(1, rows + 1)),
            resumes=True,
            copies=True,
        )
        generator = np.random.default_rng(0)
        self._logits = generator.normal(size=(rows, vocab_size)).astype(np.float32)
        self.marks: list[tuple[float, float]] = []

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """Return the same logits."""
        return self._logits[: len(rows)]

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Logits:
        """Return the same logits; a step of the full batch leaves a mark."""
        if len(rows) == self.spec.rows:
            self.marks.append((time.thread_time(), time.perf_counter()))
        return self._logits[: len(rows)]

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy nothing."""

    def forget(self, row: int) -> None:
        """Forget nothing."""

    def close(self) -> None:
        """Release nothing."""


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer whose other tokens are words, so that every token makes text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġw{index}" for index in range(vocab_size - len(alphabet) - 1)]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *words, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def consume_whole(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> None:
    """One thread per request waits for the whole answer."""
    in_threads([engine.submit(prompt, params).result for prompt in prompts])


def consume_streams(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> None:
    """One thread per request takes every delta."""
    in_threads([partial(list, engine.submit(prompt, params)) for prompt in prompts])


def consume_tasks(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> None:
    """One task per request takes every delta, all in one event loop."""

    async def one(prompt: list[int]) -> None:
        async for _ in engine.submit(prompt, params):
            pass

    async def together() -> None:
        await asyncio.gather(*(one(prompt) for prompt in prompts))

    asyncio.run(together())


def in_threads(jobs: list[Callable[[], object]]) -> None:
    """Run every job in a thread of its own."""
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()

    device = NullDevice(args.rows, args.vocab, args.steps + 64)

    def load(progress: Progress) -> NullDevice:
        return device

    engine = Engine(load, word_tokenizer(args.vocab), eos_ids=frozenset())
    params = SamplingParams(max_tokens=args.steps)
    prompts = [[300 + row, *range(8)] for row in range(args.rows)]
    consumers = {"whole answers": consume_whole, "streaming threads": consume_streams, "streaming tasks": consume_tasks}
    columns = ("engine", "process", "wall")
    figures: dict[str, dict[str, list[float]]] = {name: {column: [] for column in columns} for name in consumers}
    for _ in range(args.repeats):
        for name, consume in consumers.items():  # interleaved: the machine's speed drifts
            device.marks.clear()
            process = time.process_time()
            consume(engine, prompts, params)
            process = time.process_time() - process
            (cpu_first, first), (cpu_last, last) = device.marks[0], device.marks[-1]
            steps = len(device.marks) - 1
            figures[name]["engine"].append((cpu_last - cpu_first) / steps * 1000)
            figures[name]["process"].append(process / steps * 1000)
            figures[name]["wall"].append((last - first) / steps * 1000)
    engine.close()
    if args.json:
        print(json.dumps({"rows": args.rows, "vocab": args.vocab, "steps": args.steps, "ms_per_step": figures}))
        return
    print(f"{args.rows} rows, vocabulary {args.vocab}, {args.steps} tokens each, {args.repeats} repeats")
    print("milliseconds per decode step: median (fastest-slowest)")
    print(f"{'consumers':20} {'engine thread CPU':>24} {'process CPU':>24} {'wall':>24}")
    for name, measured in figures.items():
        cells = [f"{statistics.median(ms):.3f} ({min(ms):.3f}-{max(ms):.3f})" for ms in measured.values()]
        print(f"{name:20} " + " ".join(f"{cell:>24}" for cell in cells))
    wall = statistics.median(figures["whole answers"]["wall"])
    met = "met" if wall <= GOAL_MS else "MISSED"
    print(f"goal: {GOAL_MS} ms of wall time per step for whole answers: {met} with {wall:.3f} ms")


if __name__ == "__main__":
    main()
