"""The Xeon device's eager path against transformers' own `generate`, in one interleaved run.

    python benchmarks/xeon_eager.py [--shape 135m|360m] [--threads 1] [--repeats 3] [--json FILE]

A random-weight Llama of SmolLM2's shape, greedy, no end of sequence, in the dtype this CPU is fast at for both. Three
workloads: *single* (one 256-token prompt, 64 new tokens), *batch* (8 unequal prompts of about 128 tokens, 64 new
tokens) and *rag* (8 questions over one 512-token context, 32 new tokens each). transformers runs as its documentation
advises: SDPA attention, the batch padded on the left in one `generate` call, `rag` as one such batch. Both run the same
number of threads; CPU time of the whole process is the figure to trust on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from langchain_accel.devices.base import Plan, Progress
from langchain_accel.devices.xeon import Options, cpu_flags, fastest_dtype, load
from langchain_accel.runtime.batch import complete
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import SamplingParams

SHAPES = {
    "135m": {"hidden": 576, "layers": 30, "heads": 9, "kv_heads": 3, "intermediate": 1536},
    "360m": {"hidden": 960, "layers": 32, "heads": 15, "kv_heads": 5, "intermediate": 2560},
}
VOCABULARY = 49_152


class NoText:
    """A tokenizer for an engine whose text nobody reads."""

    eos_token_id = None

    def decode(self, tokens: object, **_: object) -> str:
        """Return nothing."""
        return ""


def make_model(folder: Path, shape: str) -> Path:
    """Write a random model of this shape."""
    size = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size["hidden"],
        intermediate_size=size["intermediate"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv_heads"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def workloads() -> dict[str, tuple[list[list[int]], int]]:
    """Return prompts and new tokens of each workload."""
    draw = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return draw.integers(10, VOCABULARY, count).tolist()

    context = tokens(512)
    return {
        "single": ([tokens(256)], 64),
        "batch": ([tokens(int(length)) for length in draw.integers(64, 192, 8)], 64),
        "rag": ([context + tokens(16) for _ in range(8)], 32),
    }


def ours(engine: Engine, prompts: list[list[int]], new: int) -> None:
    """Answer through the engine; what it remembers of the last run is of no use to it."""
    complete(engine, [(prompt, SamplingParams(max_tokens=new)) for prompt in prompts])


def theirs(model: LlamaForCausalLM, prompts: list[list[int]], new: int) -> None:
    """Answer with one padded `generate` call."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0
        )


def clocked(job: Callable[[], None]) -> tuple[float, float]:
    """Return CPU and wall seconds of a job."""
    cpu, wall = time.process_time(), time.perf_counter()
    job()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=fastest_dtype(cpu_flags()))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    args = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch) / "model", args.shape)
        plan = Plan("xeon", str(folder), rows=8, max_len=1024, dtype=args.dtype)

        def open_device(progress: Progress) -> object:
            return load(plan, Options(threads=args.threads), progress=progress)

        engine = Engine(open_device, NoText(), eos_ids=frozenset())
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype))
        plain.generation_config.eos_token_id = None
        measured: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for repeat in range(args.repeats + 1):
            for name, (prompts, new) in workloads().items():
                # A first token of its own: nothing is remembered from the last repeat, but shared within one.
                fresh = [[1 + repeat, *prompt[1:]] for prompt in prompts]
                runs = {
                    "langchain-accel": lambda fresh=fresh, new=new: ours(engine, fresh, new),
                    "transformers": lambda fresh=fresh, new=new: theirs(plain, fresh, new),
                }
                for peer, job in runs.items():
                    seconds = clocked(job)
                    if repeat:  # the first round warms both up
                        measured.setdefault(name, {}).setdefault(peer, []).append(seconds)
        engine.close()
    print(f"SmolLM2-{args.shape} shape, random weights, {args.dtype}, {args.threads} thread(s), {args.repeats} runs")
    print(f"{'workload':10} {'peer':16} {'CPU s':>8} {'wall s':>8} {'ratio of CPU time':>18}")
    for name, peers in measured.items():
        base = statistics.median(cpu for cpu, _ in peers["langchain-accel"])
        for peer, runs in peers.items():
            cpu, wall = (statistics.median(column) for column in zip(*runs, strict=True))
            print(f"{name:10} {peer:16} {cpu:8.2f} {wall:8.2f} {cpu / base:17.2f}x")
    if args.json:
        args.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
