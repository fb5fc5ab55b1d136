"""Measures what models take of this machine's memory once loaded: `python -m tests.cli.resident ROWS MAX_LEN FOLDER...`

A first folder is loaded and closed unmeasured, so that imports and thread pools are not counted. Prints a JSON list of
the bytes that each further one adds to the process, computed by torch, with every column of its KV cache written.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

from langchain_accel.devices import xeon
from langchain_accel.devices.base import Device, Plan


def resident() -> int:
    gc.collect()
    line = next(
        line for line in Path("/proc/self/smaps_rollup").read_text("ascii").splitlines() if line.startswith("Rss:")
    )
    return int(line.split()[1]) * 1024


def loaded(folder: str, rows: int, max_len: int) -> Device:
    plan = Plan("xeon", folder, rows=rows, max_len=max_len, dtype="float32")
    device = xeon.load(plan, xeon.Options(threads=1, kernels=False))
    with torch.inference_mode():  # the tensors were made in it
        for keys, values in device._attention.arena.layers.values():
            keys.zero_()
            values.zero_()
    return device


if __name__ == "__main__":
    rows, max_len, first, *folders = sys.argv[1:]
    loaded(first, int(rows), int(max_len)).close()
    measured = []
    for folder in folders:
        before = resident()
        device = loaded(folder, int(rows), int(max_len))
        measured.append(resident() - before)
        device.close()
        del device
    sys.stdout.write(json.dumps(measured) + "\n")
