"""Runs a command in processes that are killed, one after the other, when a file has grown to given sizes.

Usage: python -m tests.cli.killed_runs FILE SIZES COMMAND... with SIZES as `100,2000`. The last run is left alone.
Prints exit code and size of the file after each, as JSON. The processes are forked from this one, so that what takes
seconds, importing transformers, happens once: each loads the model and answers by itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def run(command: list[str], file: Path, kill_at: int | None) -> int:
    """Return the exit code, negative for a signal."""
    child = os.fork()
    if not child:
        code = 70
        try:
            from langchain_accel.cli import main

            os.dup2(2, 1)
            sys.argv = ["langchain-accel", *command]
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            os._exit(code)
    while kill_at is not None and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if size(file) >= kill_at:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.001)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    from transformers import AutoTokenizer

    for module in ("cli.app", "devices.reference", "runtime.engine"):
        import_module(f"langchain_accel.{module}")

    AutoTokenizer.from_pretrained(sys.argv[sys.argv.index("--model") + 1])  # imports what children need
    watched, sizes = Path(sys.argv[1]), [int(point) for point in sys.argv[2].split(",") if point]
    history = []
    for point in (*sizes, None):
        returned = run(sys.argv[3:], watched, point)
        history.append({"code": returned, "size": size(watched)})
    sys.stdout.write(json.dumps(history) + "\n")
