"""The far end of the pipe: a peer's process, which loads one model and answers workloads, timed where they are run.

    python -m benchmarks.xeon.peers.serving MODULE

One json object per line, from standard input to standard output: `{"do": "prepare" | "load" | "call", ...}`. The answer
holds what was asked for, or `{"error": text}`, after which the process ends. What libraries write to standard output
goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

Answer = Callable[..., list[list[int]]]
"""`answer(prompts, new, shared, first)`: greedy tokens for prompts asked at the same time.

`new` tokens for each prompt, past every end of sequence. `shared` tokens at their beginning are those of the last call
and of the next. `first()` is called when the first token is there, for a single prompt, by peers that can tell.
"""


class Clock:
    """Wall and processor seconds since it was made; processor time is that of all threads of this process."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self.first: tuple[float, float] | None = None

    def read(self) -> tuple[float, float]:
        """Return wall and processor seconds."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu

    def note_first(self) -> None:
        """Remember when the first token came."""
        self.first = self.first or self.read()


def call(answer: Answer, prompts: Sequence[list[int]], new: int, shared: int) -> dict[str, Any]:
    """Have one call answered; return its times in seconds, and the tokens."""
    clock = Clock()
    made = answer(prompts, new, shared, clock.note_first)
    wall, cpu = clock.read()
    first_wall, first_cpu = clock.first if clock.first and len(prompts) == 1 else (None, None)
    tokens = [[int(token) for token in each] for each in made]
    return {"wall": wall, "cpu": cpu, "first_wall": first_wall, "first_cpu": first_cpu, "tokens": tokens}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed here."""
    installed = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def serve(module: Any, lines: TextIO, out: TextIO) -> None:
    """Answer requests until they end, or one fails."""
    answer: Answer | None = None
    for line in lines:
        asked = json.loads(line)
        try:
            match asked.pop("do"):
                case "prepare":
                    module.prepare(Path(asked.pop("source")), Path(asked.pop("into")), **asked)
                    said = {}
                case "load":
                    clock = Clock()
                    answer = module.load(Path(asked.pop("folder")), asked.pop("threads"), **asked)
                    said = {"seconds": clock.read(), "versions": versions(module.PACKAGES)}
                case "call":
                    assert answer is not None, "nothing was loaded"
                    said = call(answer, **asked)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run reports it and goes on without this peer
            traceback.print_exc()
            said = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(said) + "\n")
        out.flush()
        if "error" in said:
            return


def main() -> None:
    """Serve the module that the command line names."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(import_module(f"benchmarks.xeon.peers.{sys.argv[1]}"), sys.stdin, out)


if __name__ == "__main__":
    main()
