"""The command line on the reference device, which needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def shell(tiny: Path) -> Callable[..., Any]:
    """Run a command on the tiny model, in this process; its result has stdout, stderr and exit_code."""
    testing = pytest.importorskip("typer.testing", reason="the command line is an extra")
    from langchain_accel.cli.app import app

    def run(command: str, *args: str | Path, stdin: str | None = None) -> Any:
        where = ["--model", str(tiny), "--device", "reference", "--max-len", "128"]
        result = testing.CliRunner().invoke(app, [command, *where, *map(str, args)], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result

    return run


def write_jsonl(file: Path, texts: Sequence[str]) -> Path:
    file.write_text(
        "".join(json.dumps({"id": index, "text": text}) + "\n" for index, text in enumerate(texts)), "utf-8"
    )
    return file


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
