"""Measure steps of the engine with several builds of its kernels in turn: a machine that drifts is fair to all.

    git archive COMMIT kernels | tar -x -C OLD && pip install --no-deps --target OLD/site OLD/kernels
    python -m benchmarks.xeon.builds now= before=OLD/site --model smol360 --cache FOLDER --rows 8 --columns 8,500

A build is a name and the folder that its package was installed to; no folder for the one that is installed here. What
is printed is processor time in milliseconds, one thread, the least and the median of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import langchain_accel_kernels
import numpy as np

from benchmarks.xeon.models import SHAPES, model_folder
from benchmarks.xeon.process import ROOT
from benchmarks.xeon.workloads import FIRST, LAST
from langchain_accel.devices import xeon
from langchain_accel.devices.base import Device, Plan

STEPS = 4  # in a row at each place, of which the fastest counts


class Steps:
    """A loaded model whose rows are filled.

    Args:
        folder: of the checkpoint.
        weights: as in `XeonOptions`.
        rows: of a decode step.
        columns: that decode steps come after, of each row.
        prompt: tokens of a prefill; 0 for none.
    """

    def __init__(self, folder: Path, weights: str, rows: int, columns: Sequence[int], prompt: int) -> None:
        self.rows, self.columns, self.prompt = rows, columns, prompt
        self._chance = np.random.default_rng(0)
        self._chunk = prompt or min(512, max(16, *columns))
        plan = Plan("xeon", str(folder), rows=rows, max_len=max(columns) + self._chunk, dtype="auto")
        self._device: Device = xeon.load(plan, xeon.Options(weights=weights, threads=1, prefill_chunk=self._chunk))
        for row in range(rows):
            for start in range(0, max(columns), self._chunk):
                self._prefill(row, start)

    def _tokens(self, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return self._chance.integers(FIRST, min(LAST, self._device.spec.vocab_size), shape)

    def _prefill(self, row: int, start: int) -> None:
        places = (np.array([self._chunk]), np.array([start]), np.array([row]))
        self._device.prefill(self._tokens(1, self._chunk), *places)

    def measure(self) -> list[float]:
        """Processor milliseconds of a decode step after each number of columns, then of the prefill, if any."""
        found = []
        for column in self.columns:
            taken = []
            for _ in range(STEPS):
                begun = time.process_time()
                self._device.decode(self._tokens(self.rows), np.full(self.rows, column), np.arange(self.rows))
                taken.append(time.process_time() - begun)
            found.append(1e3 * min(taken))
        if self.prompt:
            begun = time.process_time()
            self._prefill(0, 0)
            found.append(1e3 * (time.process_time() - begun))
        return found


def summary(names: Sequence[str], steps: Sequence[str], found: Sequence[Sequence[Sequence[float]]]) -> str:
    """Return a table of `found[build][round][step]`, least and median of the rounds."""
    lines = ["| build | " + " | ".join(steps) + " |", "|---" * (len(steps) + 1) + "|"]
    for name, rounds in zip(names, found, strict=True):
        cells = [f"{min(step):.1f}, {median(step):.1f}" for step in zip(*rounds, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _answer(folder: Path, args: argparse.Namespace) -> None:
    """Be one build's process: a line for every line that comes."""
    steps = Steps(folder, args.weights, args.rows, args.columns, args.prompt)
    print(json.dumps(str(Path(langchain_accel_kernels.__file__).parent.parent)), flush=True)
    for _ in sys.stdin:
        print(json.dumps(steps.measure()), flush=True)


def main() -> None:
    """Start a process for each build, and let them step in turn."""
    args = _arguments()
    folder = model_folder(args.model, args.cache)
    if not args.builds:
        return _answer(folder, args)
    builds = dict(args.builds)
    steps = [f"decode, {args.rows} rows, {column} columns" for column in args.columns]
    steps += [f"prefill, {args.prompt} tokens"] if args.prompt else []
    columns = ",".join(map(str, args.columns))
    settings = {"model": args.model, "cache": args.cache, "weights": args.weights, "rows": args.rows}
    settings |= {"columns": columns, "prompt": args.prompt}
    command = [
        sys.executable,
        "-m",
        "benchmarks.xeon.builds",
        *(f"--{name}={value}" for name, value in settings.items()),
    ]
    with ExitStack() as stack:
        processes = []
        for site in builds.values():
            where = {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)] if site else [str(ROOT)])}
            process = subprocess.Popen(  # noqa: S603
                command, cwd=ROOT, env=os.environ | where, stdin=-1, stdout=-1, text=True
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        found: list[list[list[float]]] = [[] for _ in builds]
        for turn in range(args.rounds + 1):  # the first one waits until all have loaded
            for process, site, rounds in zip(processes, builds.values(), found, strict=True):
                assert process.stdin is not None and process.stdout is not None  # noqa: PT018
                if turn:
                    process.stdin.write("\n")
                    process.stdin.flush()
                if not (line := process.stdout.readline()):
                    sys.exit("a build's process ended; what it printed stands above")
                said = json.loads(line)
                if turn:
                    rounds.append(said)
                elif site and Path(said) != site:
                    sys.exit(
                        f"{site} holds no langchain_accel_kernels, and what is installed in {said} was taken instead"
                    )
    print(summary(list(builds), steps, found))
    return None


def _build(text: str) -> tuple[str, Path | None]:
    name, separator, site = text.partition("=")
    if not separator:
        msg = f"a build is NAME=FOLDER, or NAME= for the one that is installed, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return name, Path(site).resolve() if site else None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="*", type=_build, metavar="NAME=FOLDER")
    parser.add_argument("--model", choices=SHAPES, default="smol360")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the models")
    parser.add_argument("--weights", choices=("int8", "int4", "exact"), default="int8")
    parser.add_argument("--rows", type=int, default=1, help="of a decode step")
    parser.add_argument("--columns", type=lambda text: [int(part) for part in text.split(",")], default=[8, 1500])
    parser.add_argument("--prompt", type=int, default=0, help="tokens of a prefill (default: none)")
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


if __name__ == "__main__":
    main()
