"""`benchmarks/xeon`: everybody does the same work, figures are what was measured, and nobody is dropped in silence."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typing_extensions import Self

from benchmarks.xeon import builds, figures, models, roster, run, table, workloads
from benchmarks.xeon.peers import serving
from benchmarks.xeon.process import PeerFailed, Process, checked
from langchain_accel.errors import InvalidRequest
from tests.tiny_checkpoint import make_tiny_checkpoint

LIMITS = {name: {"cpu": 10.0, "wall": 5.0, "best": 6.0} for name in ("dram", "fp32", "bf16", "int8")}


def measured(
    peer: str, repeat: int, *seconds: float, work: str = "a", tokens: list[int] | None = None
) -> dict[str, Any]:
    """One repeat whose calls took so long, twice that by the clock on the wall, and half of it for the first token."""
    calls = [{"cpu": cpu, "wall": 2 * cpu, "first_cpu": cpu / 2, "first_wall": cpu} for cpu in seconds]
    answers = [tokens or [1, 2, 3]] * len(seconds)
    said = {"peer": peer, "work": work, "repeat": repeat, "new": 3, "prompt_tokens": 10 * len(seconds)}
    return {**said, "calls": calls, "tokens": answers, "load_average": 1.0}


# ---------------------------------------------------------------------- workloads


@pytest.mark.parametrize(
    ("name", "prompts", "lengths", "new"),
    [("a", 1, {1024}, 128), ("b", 1, {7}, 100), ("c", 16, set(range(304, 688, 24)), 64), ("d", 8, {1520}, 64)],
)
def test_a_workload_has_the_sizes_it_stands_for(name: str, prompts: int, lengths: set[int], new: int) -> None:
    work = workloads.workload(name, 0)
    asked = [prompt for call in work.calls for prompt in call]
    assert (work.prompts, {len(prompt) for prompt in asked}, work.new) == (prompts, lengths, new)
    assert work.prompt_tokens == sum(map(len, asked))
    assert work.new_tokens == prompts * new
    assert all(workloads.FIRST <= token < workloads.LAST for prompt in asked for token in prompt)


@pytest.mark.parametrize("name", workloads.NAMES)
def test_a_workload_is_the_same_at_every_call_and_another_in_every_repeat(name: str) -> None:
    """Mutant seen to fail: tokens drawn from the workload's name alone, which a prefix cache would find again."""
    first, again, other = (workloads.workload(name, variant) for variant in (0, 0, 1))
    assert first == again
    for call, another in zip(first.calls, other.calls, strict=True):
        for prompt, changed in zip(call, another, strict=True):
            assert len(prompt) == len(changed)
            assert prompt[:4] != changed[:4]


def test_the_questions_share_their_context_and_no_more() -> None:
    work = workloads.workload("d", 0)
    prompts = [prompt for call in work.calls for prompt in call]
    assert {tuple(prompt[: work.shared]) for prompt in prompts} == {tuple(prompts[0][:1500])}
    assert len({tuple(prompt[work.shared :]) for prompt in prompts}) == len(prompts)


# ---------------------------------------------------------------------- figures


def test_medians_and_their_spread() -> None:
    assert figures.Figure.of([3.0, 1.0, 10.0]) == figures.Figure(3.0, 1.0, 10.0)
    one = measured("x", 0, 2.0, 6.0)
    assert (figures.total(one, "cpu"), figures.total(one, "wall")) == (8.0, 16.0)
    assert figures.first(one, "cpu") == 2.0
    assert figures.decoding(measured("x", 0, 4.0), "cpu") == pytest.approx(1.0)  # 2 tokens in the 2 s after the first


def test_each_repeat_is_compared_with_the_same_repeat() -> None:
    """A repeat that one of the two lacks counts for neither. Mutant seen to fail: repeats paired in their order."""
    runs = [measured("base", 0, 1.0), measured("base", 1, 4.0), measured("base", 2, 8.0)]
    runs += [measured("x", 1, 8.0), measured("x", 2, 24.0)]
    assert figures.ratio(runs, "a", "x", "base", "cpu") == figures.Figure(2.5, 2.0, 3.0)
    assert figures.ratio(runs, "a", "base", "base", "wall") == figures.Figure(1.0, 1.0, 1.0)
    assert figures.ratio(runs, "b", "x", "base", "cpu") is None


def test_a_peer_that_cannot_tell_its_first_token_has_none() -> None:
    silent = measured("x", 0, 2.0)
    silent["calls"][0] |= {"first_cpu": None, "first_wall": None}
    assert figures.first(silent, "cpu") is figures.decoding(silent, "cpu") is None
    assert figures.bandwidth(silent, {"body": 1, "head": 1}, 8, "cpu") is None
    assert figures.operations(silent, {"body": 1, "head": 1}, "cpu") is None


def test_agreement_is_what_comes_before_the_first_difference() -> None:
    """Mutant seen to fail: equal tokens counted wherever they stand."""
    runs = [measured("base", 0, 1.0, tokens=[1, 2, 3, 4]), measured("x", 0, 1.0, tokens=[1, 9, 3, 4])]
    assert figures.agreement(runs, "a", "x", "base") == 0.25
    assert figures.agreement(runs, "a", "base", "base") == 1.0


def test_shares_count_each_weight_once_per_token() -> None:
    weights = {"body": 3_000_000_000, "head": 1_000_000_000}
    one = measured("x", 0, 4.0)  # a token per second after the first; ten prompt tokens in two seconds
    assert figures.bandwidth(one, weights, 4, "cpu") == pytest.approx(2.0)
    assert figures.operations(one, weights, "cpu") == pytest.approx(2 * 3 * 10 / 2)


# ---------------------------------------------------------------------- peers


@pytest.mark.parametrize("tokens", [[[1, 2], [1]], [[1], [1, 2, 3]], [[1, 2]], [[1, 2]] * 3])
def test_an_answer_of_another_length_is_refused(tokens: list[list[int]]) -> None:
    """Mutant seen to fail: only the number of all tokens compared, or of prompts."""
    with pytest.raises(PeerFailed, match="where 2 of 2 were asked for"):
        checked({"tokens": tokens}, 2, 2)


def test_an_answer_of_the_right_length_is_passed_on() -> None:
    assert checked({"tokens": [[1, 2]], "cpu": 1.0}, 1, 2) == {"tokens": [[1, 2]], "cpu": 1.0}


def far_end(module: Any, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    out = io.StringIO()
    serving.serve(module, io.StringIO("".join(json.dumps(each) + "\n" for each in requests)), out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_the_far_end_loads_answers_and_times() -> None:
    def load(folder: Path, threads: int, *, word: str) -> serving.Answer:
        def answer(prompts: Any, new: int, shared: int, first: Any) -> list[list[int]]:
            first()
            first()  # later tokens do not move it
            return [[len(word) + threads] * new for _ in prompts]

        return answer

    ask = {"do": "call", "prompts": [[5]], "new": 2, "shared": 0}
    said = far_end(
        SimpleNamespace(load=load, PACKAGES=("langchain-accel", "no-such-package")),
        {"do": "load", "folder": "x", "threads": 3, "word": "four"},
        ask,
        {**ask, "prompts": [[5], [6]]},
    )
    assert list(said[0]["versions"]) == ["langchain-accel"]
    assert said[1]["tokens"] == [[7, 7]]
    assert 0 <= said[1]["first_wall"] <= said[1]["wall"]
    assert said[2]["first_wall"] is None, "of several prompts, which one's first token would it be?"


def test_the_far_end_says_what_went_wrong_and_ends() -> None:
    def load(folder: Path, threads: int) -> None:
        raise FileNotFoundError(folder)

    said = far_end(
        SimpleNamespace(load=load), {"do": "load", "folder": "no-such-weights", "threads": 1}, {"do": "call"}
    )
    assert said == [{"error": "FileNotFoundError: no-such-weights"}]


def test_a_process_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    nobody = Process(Path(sys.executable), "nobody", threads=1, log=log, patience=60)
    with nobody, pytest.raises(PeerFailed, match=r"No module named 'benchmarks\.xeon\.peers\.nobody'"):
        nobody.ask("load", folder=tmp_path, threads=1)


def test_every_default_peer_exists_and_an_unknown_one_is_refused() -> None:
    assert [roster.find(name).name for name in roster.DEFAULT] == list(roster.DEFAULT)
    for name in ("nobody-int8", "llama_cpp-int8", "openvino"):
        with pytest.raises(InvalidRequest, match="choose from ours-WEIGHTS"):
            roster.find(name)
    ours = roster.find("ours-int4", {"prefill_chunk": 512, "dtype": "bfloat16"})
    assert ours.settings == {"through": "engine", "weights": "int4", "prefill_chunk": 512, "dtype": "bfloat16"}


def test_an_environment_counts_only_when_it_is_whole(tmp_path: Path) -> None:
    peer = roster.find("vllm-bf16")
    python = tmp_path / "peer_vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert peer.python(tmp_path) is None
    (tmp_path / "peer_vllm" / roster.READY).touch()
    assert peer.python(tmp_path) == python


def test_a_peer_that_is_not_installed_is_told_with_what_installs_it(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant seen to fail: such a peer passed over."""
    out = tmp_path / "results.json"
    monkeypatch.setattr(run, "model_folder", lambda name, cache: tiny)
    monkeypatch.setattr(run, "_limits", lambda threads: LIMITS)
    where = ["--cache", str(tmp_path), "--environments", str(tmp_path / "none"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["run", "--peers", "vllm-bf16,openvino-int8", "--repeats", "2", *where])
    run.main()
    results = json.loads(out.read_text())
    assert list(results["skipped"]) == ["vllm-bf16", "openvino-int8"]
    assert "not installed: pip install torch==" in results["skipped"]["vllm-bf16"]
    assert "openvino-genai==" in results["skipped"]["openvino-int8"]
    text = table.tables(results, "ours-int8")
    assert "Left out: `vllm-bf16`: not installed: pip install" in text


def test_the_table_shows_every_peer_that_answered() -> None:
    runs = [measured(peer, repeat, 1.0 + repeat, work=work) for peer in "xy" for work in "ab" for repeat in range(3)]
    results = {
        "model": "tiny",
        "threads": 1,
        "machine": {"when": "today", "cores": 2, "flags": ["avx2"]},
        "weights": {"body": 10**9, "head": 10**9},
        "limits": [LIMITS] * 3,
        "peers": {peer: {"bits": 8} for peer in "xy"},
        "skipped": {},
        "runs": runs,
    }
    lines = table.tables(results, "x").splitlines()
    for peer in "xy":
        rows = [line for line in lines if line.startswith(f"| `{peer}` |")]
        assert len(rows) == 2, "one for each workload"
        assert "| 2.00 (1.00-3.00) |" in rows[0]
        assert "| 1.00x | 1.00x | 100% |" in rows[0]


# ---------------------------------------------------------------------- models


def test_a_folder_is_written_once_and_whole_or_not_at_all(tmp_path: Path) -> None:
    """Mutant seen to fail: written in place."""
    target = tmp_path / "models" / "one"

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise FileNotFoundError(folder)

    with pytest.raises(FileNotFoundError):
        models.whole(target, fail)
    assert list(target.parent.iterdir()) == []
    assert models.whole(target, lambda folder: (folder / "all").touch()) == target
    assert models.whole(target, fail) == target
    assert [file.name for file in target.iterdir()] == ["all"]


def test_text_and_tokens_are_each_others_inverse() -> None:
    assert models.tokens(models.text([16, 3999, 0])) == [16, 3999, 0]


@pytest.mark.parametrize("tied", [False, True])
def test_weights_counts_what_a_step_multiplies_with(tied: bool, tmp_path: Path) -> None:
    """The embedding is looked up; it counts only where it is the head as well."""
    folder = make_tiny_checkpoint(tmp_path / "model", vocab_size=320, hidden=32, layers=2, intermediate=64, tied=tied)
    block = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
    assert models.weights(folder) == {"body": 2 * block, "head": 320 * 32}


def test_builds_are_told_apart_by_their_least_and_their_median() -> None:
    """Mutants seen to fail: the most; the mean."""
    rounds = [[[9.0, 40.0], [1.0, 90.0], [2.0, 50.0]], [[5.0, 70.0], [6.0, 99.0], [9.0, 80.0]]]
    assert builds.summary(["now", "before"], ["a", "b"], rounds).splitlines()[2:] == [
        "| now | 1.0, 2.0 | 40.0, 50.0 |",
        "| before | 5.0, 6.0 | 70.0, 80.0 |",
    ]


def test_a_folder_without_a_build_is_not_measured_as_one(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant seen to fail: what is installed measured in its place."""
    shapes = {"tiny": ("llama", {})}
    monkeypatch.setattr(builds, "SHAPES", shapes)
    monkeypatch.setattr(builds, "model_folder", lambda name, cache: tiny)
    monkeypatch.setattr(builds.subprocess, "Popen", lambda *_, **__: _Said(json.dumps("/installed") + "\n"))
    monkeypatch.setattr(sys, "argv", ["builds", f"before={tmp_path}", "--model", "tiny", "--cache", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no langchain_accel_kernels, and what is installed in /installed"):
        builds.main()


class _Said:
    """A process that has said one line."""

    def __init__(self, line: str) -> None:
        self.stdin, self.stdout = io.StringIO(), io.StringIO(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def kill(self) -> None: ...


def test_a_build_measures_every_step_it_is_asked_for(tiny: Path) -> None:
    found = builds.Steps(tiny, "exact", rows=2, columns=[16, 20], prompt=16).measure()
    assert len(found) == 3
    assert all(milliseconds > 0 for milliseconds in found)
