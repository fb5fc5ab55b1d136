"""`examples/rag_qa.py`, with nothing changed but the class."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("mindformers") is None:
    pytest.skip("needs mindformers: .ci/run builds a virtual environment for it", allow_module_level=True)
pytest.importorskip("bm25s", reason="the example retrieves with bm25s")

from langchain_accel import AscendOptions, ChatAscend

pytestmark = pytest.mark.timeout(600)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_demo_runs_with_another_class(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own `main`: streams, answers the questions as one batch, and compares 32 tokens with transformers.

    The name `ChatXeon` in the example means `ChatAscend`, as if the one word had been edited.
    """
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import rag_qa

    made: list[ChatAscend] = []

    def swapped(**fields: Any) -> ChatAscend:
        made.append(ChatAscend(**fields, options=AscendOptions(target="cpu")))
        return made[-1]

    monkeypatch.setattr(rag_qa, "ChatXeon", swapped)
    monkeypatch.setattr(sys, "argv", ["rag_qa.py", "--max-tokens", "8"])
    monkeypatch.setenv("COLUMNS", "200")
    rag_qa.main()
    said = capsys.readouterr().out
    assert "Same 32 greedy tokens as transformers' own generate(): yes." in said
    assert "0 undeclared shapes" in said
    assert len(made) == 1
    questions = json.loads((EXAMPLES / "questions.json").read_text(encoding="utf-8"))["answerable"]
    assert f"of {len(questions)} answers" in said
