"""docs/cli.md tells what the command line does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from langchain_accel.cli.older_words import modern
from tests.cli.conftest import read_jsonl, write_jsonl

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_python_of_the_page_runs(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("reviews.jsonl"), ["fine", "dull"])
    source = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    names: dict[str, Any] = {}
    exec(source.replace('"xeon"', '"reference"').replace("path/to/model", str(tiny)), names)
    assert [result["prompt"] for result in read_jsonl(Path("results.jsonl"))] == ["fine", "dull"]
    assert names["loaded"].lease.closed


def test_options_that_are_named_exist_and_all_are_named() -> None:
    """Mutant seen to fail: an option added that the page does not name."""
    import typer

    from langchain_accel.cli.app import app

    named = set(re.findall(r"--[a-z][a-z-]*(?![\w-])", PAGE))
    command = typer.main.get_command(app)
    there = {
        option
        for one in command.commands.values()
        for parameter in one.params
        for option in parameter.opts
        if option.startswith("--")
    }
    older = {word for row in re.findall(r"^\| (`--.*?) \|", PAGE, re.MULTILINE) for word in re.findall(r"--\w+", row)}
    assert {"--bf16", "--n_iterations"} <= older
    assert all(modern([word])[1] for word in older)
    assert there - named == set()
    assert named - there == {"--help"}
