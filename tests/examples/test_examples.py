"""The examples run as a newcomer runs them, without a model; what they show is form, and the form is right."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("bm25s")
pytest.importorskip("langchain.agents")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in (EXAMPLES / "corpus").glob("*.md")}
COMMANDS = {
    "agent": ["--max-tokens", "64", "--turns", "3"],
    "conversational_rag": ["--script", "--max-tokens", "24", "--window", "640"],
    "extract": ["--pages", "3", "--max-tokens", "160"],
    "map_reduce": ["--pages", "4", "--max-tokens", "12"],
    "rag_with_sources": ["--questions", "3", "--max-tokens", "8"],
}


RUNNER = """
import json, os, runpy, sys
import torch, langchain.agents, rag_qa
from transformers import LlamaForCausalLM
commands, children = json.loads(sys.argv[1]), {}
for name, arguments in commands.items():
    if child := os.fork():
        children[name] = child
        continue
    for stream, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{sys.argv[2]}/{name}.{ending}", os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = [f"{name}.py", *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()
print(json.dumps({name: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for name, child in children.items()}))
"""
"""Runs every example as a process of its own, forked from one that has done the imports: they take most of the time."""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each example prints to standard output."""
    folder = tmp_path_factory.mktemp("examples")
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(COMMANDS), str(folder)],
        cwd=EXAMPLES,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for name, code in json.loads(done.stdout).items():
        told = (folder / f"{name}.err").read_text(encoding="utf-8")
        assert code == 0, f"{name}: {told}"
        assert ("random weights: its words mean nothing" in told) == (name != "rag_with_sources")
    return {name: (folder / f"{name}.out").read_text(encoding="utf-8") for name in COMMANDS}


def test_every_example_is_run_and_listed() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")} - {"tiny_model"}
    assert names == {*COMMANDS, "rag_qa", "service"}
    listed = re.findall(r"`python examples/(\w+)\.py", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(names)


def test_an_agent_makes_valid_calls_and_ends(printed: dict[str, str]) -> None:
    """The first turn calls a tool and the tool takes it, whatever the weights."""
    lines = printed["agent"].splitlines()
    calls = [json.loads(line.removeprefix("call: ")) for line in lines if line.startswith("call: ")]
    results = [line for line in lines if line.startswith("result: ")]
    assert 1 <= len(calls) == len(results) <= 3
    for call in calls:
        assert set(call["args"]) == {"search_handbook": {"query"}, "add_numbers": {"numbers"}}[call["name"]]
    assert all(line.startswith("result: success") for line in results)


def test_a_conversation_is_trimmed_below_the_window_and_reuses_its_history(printed: dict[str, str]) -> None:
    text = printed["conversational_rag"]
    turns = [
        [int(number) for number in re.findall(r"\d+", line)] for line in text.splitlines() if "messages of" in line
    ]
    assert len(turns) == text.count("\n? ") + 1 == 6
    assert {len(turn) for turn in turns} == {6}
    for _, history, budget, prompt, window, _ in turns:
        assert history <= budget
        assert prompt < window
    sizes = [messages for messages, *_ in turns]
    assert sizes[:2] == [0, 2]
    assert sizes != sorted(set(sizes)), f"the history was never trimmed: {sizes}"
    for before, after in pairwise(turns):
        assert after[5] >= after[1] - 8, "the history is in the KV cache when the answer begins"
        if after[0] > before[0]:
            assert after[5] > before[5], "as the history grows, so does what is reused"


def test_extraction_gives_valid_lines(printed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line validates against the example's own schema, nested parts included."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from extract import Facts

    lines = [json.loads(line) for line in printed["extract"].splitlines()]
    assert [line.pop("page") for line in lines] == sorted(PAGES)[:3]
    for line in lines:
        Facts.model_validate(line)


def test_map_and_reduce_share_steps(printed: dict[str, str]) -> None:
    text = printed["map_reduce"]
    stages = re.findall(
        r"^(\w+): (\d+) answers, (\d+) tokens, (\d+) device steps; .* at least (\d+)", text, re.MULTILINE
    )
    assert [(stage, answers) for stage, answers, *_ in stages] == [("map", "4"), ("reduce", "1")]
    _, _, _, steps, alone = stages[0]
    assert int(steps) < int(alone)
    assert text.rsplit("\n\n", 1)[1].strip()


def test_answers_come_with_the_pages_they_were_made_from(printed: dict[str, str]) -> None:
    lines = [json.loads(line) for line in printed["rag_with_sources"].splitlines()]
    assert len(lines) == 3
    shipped = json.loads((EXAMPLES / "questions.json").read_text(encoding="utf-8"))["answerable"]
    for line, item in zip(lines, shipped, strict=False):
        assert set(line) == {"question", "sources", "answer"}
        assert line["question"] == item["question"]
        assert item["source"] in [source["source"] for source in line["sources"]]
        for source in line["sources"]:
            assert PAGES[source["source"]].startswith(f"# {source['title']}\n")
