"""The Xeon device, natively or by torch, against transformers' own `generate`, in one interleaved run.

    python benchmarks/xeon_eager.py [--shape 135m|360m] [--weights exact|int8|int4] [--torch] [--threads 1]
        [--repeats 3] [--json FILE]

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
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from langchain_accel.cli import measuring, peers
from langchain_accel.cli.workloads import Workload
from langchain_accel.devices.base import Plan, Progress
from langchain_accel.devices.processors import cpu_flags, fastest_dtype
from langchain_accel.devices.xeon import Options, load
from langchain_accel.runtime.engine import Engine

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


def workloads(repeat: int) -> list[Workload]:
    """Return the workloads; their first token is each repeat's own, so that nothing is remembered from the last."""
    draw = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return draw.integers(10, VOCABULARY, count).tolist()

    def fresh(prompt: list[int]) -> list[int]:
        return [1 + repeat, *prompt[1:]]

    context = tokens(512)
    return [
        Workload("single", (fresh(tokens(256)),), 64),
        Workload("batch", tuple(fresh(tokens(int(length))) for length in draw.integers(64, 192, 8)), 64),
        Workload("rag", tuple(fresh(context + tokens(16)) for _ in range(8)), 32),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=fastest_dtype(cpu_flags()))
    parser.add_argument(
        "--weights", choices=("exact", "int8", "int4"), default="exact", help="ours; transformers' are exact"
    )
    parser.add_argument("--torch", action="store_true", help="ours by torch alone, without native steps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    args = parser.parse_args()
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch) / "model", args.shape)
        plan = Plan("xeon", str(folder), rows=8, max_len=1024, dtype=args.dtype)

        def open_device(progress: Progress) -> object:
            options = Options(weights=args.weights, kernels=not args.torch, threads=args.threads)
            return load(plan, options, progress=progress)

        engine = Engine(open_device, NoText(), eos_ids=frozenset())
        theirs = peers.transformers(folder, args.dtype)
        torch.set_num_threads(args.threads)
        answers = {peers.OURS: peers.ours(engine), "transformers": theirs}
        measured = measuring.compare(answers, workloads, args.repeats)
        engine.close()
    ours = f"{args.weights}{' by torch' if args.torch else ''}"
    ran = f"{args.dtype}, ours {ours}, {args.threads} thread(s), {args.repeats} runs"
    print(f"SmolLM2-{args.shape} shape, random weights, {ran}")
    print(f"{'workload':10} {'peer':16} {'CPU s':>8} {'wall s':>8} {'ratio of CPU time':>18}")
    for one in measured:
        cpu, wall = statistics.median(one.cpu), statistics.median(one.wall)
        ratio = measuring.ratio(measured, one, peers.OURS, cpu=True)
        print(f"{one.workload:10} {one.peer:16} {cpu:8.2f} {wall:8.2f} {ratio:17.2f}x")
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in measured], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
