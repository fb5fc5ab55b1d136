"""The demo runs as a newcomer runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("bm25s")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_demo_runs_and_is_honest_about_what_it_shows() -> None:
    """Streams one answer, batches ten, reuses prefixes, and gives the tokens that transformers gives."""
    done = subprocess.run(
        [sys.executable, "rag_qa.py"],
        cwd=EXAMPLES,
        env={**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "sometimes wrong" in done.stdout
    assert "90 days" in done.stdout.split("How often does the anemometer")[1].splitlines()[1]
    right = int(re.findall(r"(\d+) of 10 answers hold the expected words", done.stdout)[0])
    assert right >= 6
    assert "Same 32 greedy tokens as transformers' own generate(): yes." in done.stdout
    assert "0 undeclared shapes" in done.stdout
    reused, prompts = map(int, re.findall(r"(\d+) of (\d+) prompt tokens reused, 0 undeclared", done.stdout)[0])
    assert 0 < reused < prompts
    prefills, decodes = map(int, re.findall(r"(\d+) prefill and (\d+) decode steps", done.stdout)[0])
    assert decodes <= 4 * 128, "ten answers of at most 128 tokens share their decode steps"
    assert prefills >= 10
