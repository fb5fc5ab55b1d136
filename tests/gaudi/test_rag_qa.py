"""`examples/rag_qa.py`, with nothing changed but the class."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bm25s", reason="the example retrieves with bm25s")

from langchain_accel import ChatGaudi
from tests.gaudi.helpers import counts, needs_optimum, options

pytestmark = needs_optimum

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_demo_runs_with_another_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], counters: Path
) -> None:
    """Its own `main`: streams, answers the questions as one batch, and compares 32 tokens with transformers.

    The name `ChatXeon` in the example means `ChatGaudi`, as if the one word had been edited.
    """
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import rag_qa

    made: list[ChatGaudi] = []

    def swapped(**fields: Any) -> ChatGaudi:
        made.append(ChatGaudi(**fields, options=options(bucket_size=128)))
        return made[-1]

    monkeypatch.setattr(rag_qa, "ChatXeon", swapped)
    monkeypatch.setattr(sys, "argv", ["rag_qa.py", "--max-tokens", "8"])
    monkeypatch.setenv("COLUMNS", "200")
    rag_qa.main()
    said = capsys.readouterr().out
    assert "Same 32 greedy tokens as transformers' own generate(): yes." in said
    assert "0 undeclared shapes" in said
    assert len(made) == 1
    assert counts(counters)["replays"] > 32
    questions = json.loads((EXAMPLES / "questions.json").read_text(encoding="utf-8"))["answerable"]
    assert f"of {len(questions)} answers" in said
