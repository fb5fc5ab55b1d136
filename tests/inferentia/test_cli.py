"""The tutorial's chatbot by two commands: exported ahead of time, loaded again, talked to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optimum.neuron", reason="needs optimum-neuron: .ci/run builds a virtual environment for it")
pytest.importorskip("typer", reason="the command line is an extra")

from typer.testing import CliRunner

from langchain_accel import ChatInferentia
from langchain_accel.cli.app import app
from langchain_accel.devices import folders
from langchain_accel.devices.inferentia import export as exporting
from tests.tiny_checkpoint import make_tiny_checkpoint

SHAPES = ["--device", "inferentia", "--max-len", "96", "--dtype", "float32", "--tensor-parallel-size", "2"]
QUESTIONS = ["What is the weather?", "And the sea?"]


def run(*args: str | Path, stdin: str | None = None) -> Any:
    result = CliRunner().invoke(app, list(map(str, args)), input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def test_a_chatbot_is_exported_and_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two turns, the second with the first in its prompt, are those of the checkpoint itself; the second load compiles
    nothing. Mutant seen to fail: the number of rows left out of what is exported."""
    model = make_tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=128)
    done = run("export", "--model", model, "--out", tmp_path / "neuron", *SHAPES, "--rows", "1", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"folder": str(tmp_path / "neuron"), "pushed_to": None}

    llm = ChatInferentia(model=str(model), rows=1, max_len=96, dtype="float32", tensor_parallel_size=2, max_tokens=8)
    history: list[tuple[str, str]] = []
    for question in QUESTIONS:
        history.append(("human", question))
        history.append(("ai", str(llm.invoke(history).content)))
    llm.close()

    def compiling(*_: Any) -> None:
        msg = "a model that was exported was compiled again"
        raise AssertionError(msg)

    monkeypatch.setattr(exporting, "_compile", compiling)
    talk = ["chat", "--model", tmp_path / "neuron", *SHAPES, "--max-new-tokens", "8", "--json"]
    said = run(*talk, stdin="\n".join(QUESTIONS))
    assert said.exit_code == 0, said.output
    answers = [json.loads(line)["content"] for line in said.stdout.splitlines() if line.startswith("{")]
    assert answers == [text for role, text in history if role == "ai"]


def test_a_folder_goes_to_the_hub_only_where_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[tuple[Path, str]] = []
    monkeypatch.setattr(folders, "upload", lambda folder, repository: uploaded.append((folder, repository)))
    model = make_tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=128)
    first = ["export", "--model", model, *SHAPES, "--rows", "1", "--device-option", f"cache_dir={tmp_path / 'cache'}"]
    assert run(*first, "--out", tmp_path / "one").exit_code == 0
    assert uploaded == []
    assert run(*first, "--out", tmp_path / "two", "--push-to-hub", "somebody/tiny").exit_code == 0
    assert uploaded == [(tmp_path / "two", "somebody/tiny")]
