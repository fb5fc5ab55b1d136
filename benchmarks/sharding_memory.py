"""Private memory of each rank while a sharded model loads and after, against the same model in one process.

    python benchmarks/sharding_memory.py [--layers 24] [--ranks 2]

The model is a random Llama of 0.4 billion parameters in bfloat16, served in bfloat16 (weights are packed into private
memory where the processor has bfloat16 instructions) and in float32 (weights are converted). Pages of the mapped
checkpoint are shared by all ranks and can be dropped at any time, so anonymous memory is what counts. The process
itself, its libraries and what they allocate, is measured with a model of next to nothing and shown beside.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from langchain_accel.devices import xeon
from langchain_accel.devices.base import Placement, Plan
from langchain_accel.runtime.workers import WorkerGroup

MIB = 2**20
SAMPLE_SECONDS = 0.02


@dataclass
class Sampler:
    """Watches the anonymous memory of a group's processes from outside.

    Attributes:
        peak: largest anonymous memory of each process so far, in bytes.
    """

    peak: dict[int, int] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)

    def watch(self, parent: int) -> None:
        """Sample all children of a process until told to stop."""
        while not self.done.wait(SAMPLE_SECONDS):
            for task in Path(f"/proc/{parent}/task").iterdir():
                for pid in map(int, (task / "children").read_text().split()):
                    self.peak[pid] = max(self.peak.get(pid, 0), anonymous(pid))


def anonymous(pid: int) -> int:
    """Return the anonymous memory of a process in bytes; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:")), 0)


def measure(folder: Path, dtype: str, ranks: int) -> tuple[int, int]:
    """Load a folder over ranks; return the largest rank's peak while loading, and its memory after, in bytes."""
    import os

    options = xeon.Options(threads=1, prefill_chunk=32, shared_memory=False)
    plan = Plan("xeon", str(folder), rows=2, max_len=64, dtype=dtype, tensor_parallel_size=ranks, options=options)
    placement = xeon.placement(plan, options) if ranks > 1 else Placement(isolated=True)
    sampler = Sampler()
    watcher = threading.Thread(target=sampler.watch, args=(os.getpid(),), daemon=True)
    watcher.start()
    group = WorkerGroup("langchain_accel.devices.xeon", plan, placement)
    try:
        after = max(anonymous(pid) for pid in sampler.peak)
        return max(sampler.peak.values()), after
    finally:
        sampler.done.set()
        watcher.join()
        group.close()


def make(folder: Path, layers: int, hidden: int = 1024) -> int:
    """Save a random Llama in bfloat16 and return its number of parameters."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    state = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(state)
    model.save_pretrained(folder, max_shard_size="400MB")
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        model, nothing = Path(temporary) / "model", Path(temporary) / "nothing"
        count = make(model, arguments.layers)
        make(nothing, 1, 64)
        print(f"Llama, {count / 1e6:.0f} million parameters in bfloat16; MiB of anonymous memory per process")
        for dtype in ("bfloat16", "float32"):
            rows = {}
            for ranks in (1, arguments.ranks):
                floor, _ = measure(nothing, dtype, ranks)
                rows[ranks] = (floor, *measure(model, dtype, ranks))
                print(
                    f"{dtype}, {ranks} ranks: "
                    + ", ".join(
                        f"{name} {value / MIB:.0f}"
                        for name, value in zip(("process itself", "peak", "after"), rows[ranks], strict=True)
                    ),
                    flush=True,
                )
            one, several = rows[1], rows[arguments.ranks]
            print(
                f"{dtype}: peak {several[1] / one[1]:.0%} of one process's, "
                f"{(several[1] - several[0]) / (one[1] - one[0]):.0%} without the process itself; "
                f"after {several[2] / one[2]:.0%}"
            )


if __name__ == "__main__":
    main()
