"""A process of its own that loads the device, does one thing with it, and prints what it saw as JSON.

    python -m tests.ascend.probe WHAT MODEL CACHE_DIR

MindSpore is asked here, where it may be imported, how often it compiled.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from langchain_accel.devices import ascend
from langchain_accel.devices.base import Device
from langchain_accel.runtime.runner import Runner
from tests.ascend.helpers import ROWS, plan_of, prompts
from tests.contract.driver import Driver

compiled: list[str] = []


def load(model: str, cache_dir: str) -> Device:
    """Load and warm up; from then on every compilation is noted."""
    plan = plan_of(Path(model), cache_dir=cache_dir)
    device = ascend.load(plan, plan.options)
    from mindspore.graph import api

    compile_cell = api._CellGraphExecutor.compile

    def noted(self: Any, obj: Any, *arguments: Any, **keywords: Any) -> Any:
        phase, new = compile_cell(self, obj, *arguments, **keywords)
        if new:
            compiled.append(phase)
        return phase, new

    api._CellGraphExecutor.compile = noted
    Runner(device).warmup()
    return device


def answer(device: Device, prompt: list[int], tokens: int) -> list[int]:
    """Answer greedily on row 1."""
    drive = Driver(device)
    logits, found = drive.write(1, prompt), []
    for _ in range(tokens):
        found.append(int(logits.argmax()))
        logits = drive.decode({1: found[-1]})[1]
    return found


def serve(device: Device) -> dict[str, Any]:
    """Run every declared shape at many columns, and copies of many lengths."""
    del compiled[:]
    spec = device.spec
    for seed in range(3):
        drive = Driver(device, seed=seed)
        drive.fill(range(spec.rows), 1, 40)
        for batch, length in spec.prefill_shapes:
            for size in {1, length // 2, min(length, 16)}:
                drive.prefill({row: drive.tokens(size) for row in range(batch)}, (batch, length))
                drive.fill(range(spec.rows), 1, 40)
        for batch in (*spec.decode_shapes, *reversed(spec.decode_shapes)):
            drive.decode(dict.fromkeys(range(batch), 5), batch)
        drive.copy(0, 1, 1 + 7 * seed)
    return {"compiled": list(compiled)}


def warm(device: Device) -> dict[str, Any]:
    """Say how many graphs the warm-up compiled."""
    return {"compiled": list(compiled)}


def phases(device: Device) -> dict[str, Any]:
    """Decode two batch sizes in turns, with phases named as mindformers names them and as this package does.

    The right logits are those of each row alone.
    """
    network = device._network
    drive = Driver(device)
    drive.fill(range(ROWS), 5, 5)
    rows, tokens, columns = np.arange(ROWS), np.array([7, 8, 9, 10]), np.full(ROWS, 5)
    alone = np.concatenate([device.decode(tokens[row : row + 1], columns[:1], rows[row : row + 1]) for row in rows])

    def apart() -> float:
        found = [device.decode(tokens[:size], columns[:size], rows[:size]) for size in (2, 4, 1, 4)]
        return max(float(np.abs(logits - alone[: len(logits)]).max()) for logits in found)

    ours = apart()
    model, use = network._model, network._use
    name = model._set_network_phase
    network._use = lambda phase, *, chunks: use(phase.partition("_")[0], chunks=chunks)
    model._set_network_phase, model._pre_set_phase = lambda phase: None, None
    try:
        theirs: Any = apart()
    except Exception as error:
        theirs = str(error)
    network._use, model._set_network_phase = use, name
    return {"ours": ours, "theirs": theirs}


def main() -> None:
    what, model, cache_dir = sys.argv[1:]
    began = time.perf_counter()
    device = load(model, cache_dir)
    seconds = time.perf_counter() - began
    said = globals()[what](device)
    said |= {
        "seconds": seconds,
        "found": device._cache is not None and device._cache.found,
        "answer": answer(device, prompts(3, 20, seed=3)[-1], 8) if what == "warm" else [],
    }
    print("\nPROBE " + json.dumps(said), flush=True)
    device.close()


if __name__ == "__main__":
    main()
