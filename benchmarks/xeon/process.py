"""One end of the pipe: a peer's process, and what it is told to do."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from threading import Timer
from typing import Any

from typing_extensions import Self

from benchmarks.xeon.workloads import Workload

ROOT = Path(__file__).resolve().parents[2]
LAST_WORDS = 5  # lines of a log that are shown


class PeerFailed(Exception):
    """A peer could not do what it was asked, or did something else."""


class Process:
    """A peer's process.

    Args:
        python: its interpreter.
        module: of `peers`.
        threads: that libraries may take, in the variables they read when they start.
        log: file that its standard error goes to.
        patience: seconds for one answer; a process that takes longer is ended.
    """

    def __init__(self, python: Path, module: str, *, threads: int, log: Path, patience: float) -> None:
        count = str(threads)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "OPENBLAS_NUM_THREADS": count,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "DS_ACCELERATOR": "cpu",
        }
        self._log, self._patience = log, patience
        with log.open("a", encoding="utf-8") as errors:
            self._process = subprocess.Popen(  # noqa: S603
                [python, "-m", "benchmarks.xeon.peers.serving", module],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer to one request.

        Raises:
            PeerFailed: it failed, died or took too long.
        """
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: PT018
        timer = Timer(self._patience, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}, default=str) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            msg = f"its process ended, or took more than {self._patience:.0f} s: {self._last_words()}"
            raise PeerFailed(msg)
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise PeerFailed(said["error"])
        return said

    def warm(self, work: Workload) -> None:
        """Have a workload's first call answered with two tokens, so that the next one meets shapes it knows."""
        self.ask("call", prompts=work.calls[0], new=2, shared=work.shared)

    def answer(self, work: Workload) -> list[dict[str, Any]]:
        """Have a workload answered; return its calls as `serving.call` measured them.

        Raises:
            PeerFailed: as `ask`, or an answer is shorter or longer than was asked: the work is not the same.
        """
        return [
            checked(self.ask("call", prompts=call, new=work.new, shared=work.shared), len(call), work.new)
            for call in work.calls
        ]

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(lines[-LAST_WORDS:])


def checked(said: Mapping[str, Any], prompts: int, new: int) -> dict[str, Any]:
    """Return a call as it was measured.

    Raises:
        PeerFailed: it did not answer as many prompts, or with other numbers of tokens.
    """
    lengths = [len(tokens) for tokens in said["tokens"]]
    if lengths != [new] * prompts:
        msg = f"answers of {lengths} tokens came where {prompts} of {new} were asked for"
        raise PeerFailed(msg)
    return dict(said)
