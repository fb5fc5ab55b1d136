"""`bench`: everybody does the same work, and what is told is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the peers compute with torch")
pytest.importorskip("typer", reason="the command line is an extra")

from typer.testing import CliRunner

from langchain_accel.cli import measuring, models, peers
from langchain_accel.cli.app import app
from langchain_accel.cli.workloads import Workload, workloads
from langchain_accel.errors import DeviceUnavailable, InvalidRequest
from tests.tiny_models import VOCABULARY, make

SMALL = [
    Workload("alone", ([5, 6, 7],), new=6),
    Workload("unequal", ([5, 6, 7], [8] * 9, [9, 10, 11, 12]), new=5),
    Workload("turns", ([5, 6, 7],), new=4, later=([20, 21], [22])),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("llama", tmp_path_factory.mktemp("bench") / "llama", max_position_embeddings=1024)


def run(folder: Path, *args: str | Path) -> Any:
    where = ["--model", folder, "--dtype", "float32", "--repeats", "1"]
    return CliRunner().invoke(app, ["bench", *map(str, (*where, *args))])


@pytest.mark.parametrize("work", SMALL, ids=lambda work: work.name)
def test_peers_make_the_same_tokens(work: Workload, folder: Path) -> None:
    """In float32, greedy. Mutant seen to fail: the padding of a batch attended to."""
    loaded = models.load(models.llm("xeon", model=str(folder), dtype="float32", max_len=64))
    answers = work.run(peers.ours(loaded.lease.engine))
    loaded.close()
    assert answers == work.run(peers.transformers(folder, "float32"))
    assert [len(answer) for answer in answers] == [work.new] * len(work.prompts)


def test_langchains_pipeline_makes_as_many_tokens(folder: Path) -> None:
    pytest.importorskip("langchain_huggingface")
    answer = peers.hugging_face_pipeline(folder, "float32")
    for work in SMALL:
        assert len(work.run(answer)) == len(work.prompts)


def test_a_turn_begins_with_all_that_came_before() -> None:
    """Mutant seen to fail: what is said later left out of the next prompt."""
    asked: list[list[int]] = []

    def answer(prompts: Any, new: int) -> list[list[int]]:
        asked.extend(prompts)
        return [[len(asked)] * new]

    assert SMALL[2].run(answer) == [[3] * 4]
    assert asked == [[5, 6, 7], [5, 6, 7, *[1] * 4, 20, 21], [5, 6, 7, *[1] * 4, 20, 21, *[2] * 4, 22]]
    assert SMALL[2].longest == len(asked[-1]) + 4


def test_answers_of_another_length_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"alone: answers of \[3\] tokens came where 1 of 6 were asked for"):
        SMALL[0].run(lambda prompts, new: [[1, 2, 3]])


def test_repeats_differ_in_the_first_token_only() -> None:
    for first, second in zip(workloads(VOCABULARY), workloads(VOCABULARY, 1), strict=True):
        assert (first.name, first.new, first.later) == (second.name, second.new, second.later)
        for one, other in zip(first.prompts, second.prompts, strict=True):
            assert one[0] != other[0]
            assert one[1:] == other[1:]
    by_name = {work.name: work for work in workloads(VOCABULARY)}
    assert (len(by_name["latency"].prompts[0]), by_name["latency"].new) == (7, 100)
    assert by_name["session"].longest == 128 + 4 * 32 + 3 * 32
    assert len({prompt[511] for prompt in by_name["rag"].prompts}) == 1


def test_each_peer_is_measured_so_often_in_turn() -> None:
    """Mutant seen to fail: the repeat that warms up counted."""
    calls: list[str] = []

    def answering(name: str) -> Any:
        return lambda prompts, new: calls.append(name) or [[0] * new for _ in prompts]

    found = measuring.compare({"a": answering("a"), "b": answering("b")}, lambda repeat: SMALL[:1], 3)
    assert calls == ["a", "b"] * 4
    assert [(one.peer, one.tokens, len(one.wall), len(one.cpu)) for one in found] == [("a", 6, 3, 3), ("b", 6, 3, 3)]


def test_ratios_are_of_medians() -> None:
    ours = measuring.Measured("w", "ours", 10, wall=[1.0, 2.0, 9.0], cpu=[1.0, 1.0, 1.0])
    theirs = measuring.Measured("w", "theirs", 10, wall=[6.0, 5.0, 1.0], cpu=[3.0, 3.0, 3.0])
    assert measuring.ratio([ours, theirs], theirs, "ours") == 2.5
    assert measuring.ratio([ours, theirs], theirs, "ours", cpu=True) == 3.0
    assert ours.tokens_per_second == 5.0


def test_the_command_tells_and_draws_what_it_measured(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "measured.json", tmp_path / "measured.png"
    done = run(folder, "--workload", "latency", "--workload", "session", "--out", out, "--plot", plot, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert json.loads(out.read_text("utf-8")) == said
    assert plot.read_bytes().startswith(b"\x89PNG")
    skipped = peers.absent()
    assert set(said["skipped"]) == set(skipped)
    assert all(f"{name} is left out" in done.stderr for name in skipped)
    here = [peers.OURS, *(name for name in peers.PEERS if name not in skipped)]
    assert [(one["workload"], one["peer"]) for one in said["measured"]] == [
        (work, peer) for work in ("latency", "session") for peer in here
    ]
    for one in said["measured"]:
        assert one["tokens"] == {"latency": 100, "session": 4 * 32}[one["workload"]]
        assert one["tokens_per_second"] == pytest.approx(one["tokens"] / one["wall"][0])
        assert one["peer"] != peers.OURS or (one["wall_ratio"], one["cpu_ratio"]) == (1, 1)


def test_alone_it_is_a_table(folder: Path) -> None:
    done = run(folder, "--workload", "latency", "--no-peers")
    assert done.exit_code == 0, done.output
    assert "tokens/s" in done.stderr
    assert "transformers" not in done.stderr


def test_what_cannot_be_measured_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(folder, "--max-len", "300", "--json")
    assert done.exit_code == 1
    assert "rag 560, session 352; raise it" in json.loads(done.stdout)["error"]["message"]
    assert run(folder, "--workload", "speed").exit_code == 2
    monkeypatch.setattr(measuring, "find_spec", lambda name: None)
    with pytest.raises(DeviceUnavailable, match="pip install matplotlib"):
        measuring.check_plot()
