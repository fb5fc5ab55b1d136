"""What this machine can do at most: bytes read from memory, and multiply-adds of large matrices.

python -m benchmarks.xeon.limits --threads 1
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

MATRIX = 2048  # rows and columns of the products
TABLE = (16384, 8192)  # 512 MiB of float32: far more than any last-level cache
REPEATS = 5


def _seconds(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of a call, after one that is not counted: processor time of all threads, wall time, least wall time."""
    work()
    cpus, walls = [], []
    for _ in range(REPEATS):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    return {"cpu": statistics.median(cpus), "wall": statistics.median(walls), "best": min(walls)}


def measure(threads: int) -> dict[str, dict[str, float]]:
    """Return billions per second: bytes read (`dram`), and operations of products (`fp32`, `bf16`, `int8`).

    Each by processor time (for as many cores as there are threads), by wall time, and at best. Memory is read by a
    sum of float32 numbers, which was faster than a product with a vector; int8 is oneDNN's product of bytes, the scales
    and the conversion to float32 with it.
    """
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    table = torch.ones(TABLE)
    limits = {"dram": _rates(_seconds(table.sum), table.nbytes, threads)}
    left, right = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    operations = 2 * MATRIX**3
    limits["fp32"] = _rates(_seconds(lambda: left @ right), operations, threads)
    left16, right16 = left.bfloat16(), right.bfloat16()
    limits["bf16"] = _rates(_seconds(lambda: left16 @ right16), operations, threads)
    limits["int8"] = _rates(_seconds(_int8_product(torch, left, right)), operations, threads)
    return limits


def _int8_product(torch: Any, left: Any, right: Any) -> Callable[[], object]:
    levels = (left * 32 + 128).clamp(0, 255).to(torch.uint8)
    weight = torch.ops.onednn.qlinear_prepack((right * 32).clamp(-127, 127).to(torch.int8), None)
    scales, zeros = torch.ones(MATRIX), torch.zeros(MATRIX, dtype=torch.int64)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        levels, 1.0, 128, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _rates(seconds: dict[str, float], amount: int, threads: int) -> dict[str, float]:
    """Turn seconds into billions per second."""
    return {
        "cpu": amount / seconds["cpu"] * threads / 1e9,
        "wall": amount / seconds["wall"] / 1e9,
        "best": amount / seconds["best"] / 1e9,
    }


def main() -> None:
    """Print the limits as json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    print(json.dumps(measure(parser.parse_args().threads)))


if __name__ == "__main__":
    main()
