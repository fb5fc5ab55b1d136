"""`examples/rag_qa.py`, with nothing changed but the class."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optimum.neuron", reason="needs optimum-neuron: .ci/run builds a virtual environment for it")
pytest.importorskip("bm25s", reason="the example retrieves with bm25s")

from langchain_accel import ChatInferentia, InferentiaOptions
from tests.standins import neuron

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_demo_runs_with_another_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache_dir: str
) -> None:
    """Its own `main`: streams, answers the questions as one batch, and compares 32 tokens with transformers.

    The name `ChatXeon` in the example means `ChatInferentia`, as if the one word had been edited.
    """
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import rag_qa

    made: list[ChatInferentia] = []

    def swapped(**fields: Any) -> ChatInferentia:
        made.append(ChatInferentia(**fields, options=InferentiaOptions(cache_dir=cache_dir)))
        return made[-1]

    monkeypatch.setattr(rag_qa, "ChatXeon", swapped)
    monkeypatch.setattr(sys, "argv", ["rag_qa.py", "--max-tokens", "8"])
    monkeypatch.setenv("COLUMNS", "200")
    compiled = neuron.COUNTERS.compiled
    rag_qa.main()
    said = capsys.readouterr().out
    assert "Same 32 greedy tokens as transformers' own generate(): yes." in said
    assert "0 undeclared shapes" in said
    assert len(made) == 1
    assert neuron.COUNTERS.compiled == compiled + 2
    questions = json.loads((EXAMPLES / "questions.json").read_text(encoding="utf-8"))["answerable"]
    assert f"of {len(questions)} answers" in said
