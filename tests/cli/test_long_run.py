"""`generate --dataset`: every prompt answered once, in order, whatever happens on the way."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from langchain_accel.cli import completion, dataset, long_run, models
from langchain_accel.cli.results import Results, differences
from langchain_accel.errors import AccelError, DeviceUnavailable, InvalidRequest
from tests.cli.conftest import read_jsonl, write_jsonl
from tests.cli.test_generate import expected

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"Item {number}: the {'quick ' * (number % 4)}fox" for number in range(40)]
LIMITS = ["--max-new-tokens", "16"]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("items") / "items.jsonl", TEXTS)


@pytest.fixture(scope="module")
def unbroken(items: Path, tiny: Path) -> bytes:
    """The results file of a run that nothing interrupted."""
    out = items.with_name("unbroken.jsonl")
    loaded = models.load(models.llm("reference", model=str(tiny), max_len=128, max_tokens=16))
    long_run.answer(loaded, long_run.Input(items, "text"), out)
    loaded.close()
    return out.read_bytes()


def test_a_dataset_gets_the_answers_of_the_library_in_its_order(items: Path, unbroken: bytes, tiny: Path) -> None:
    results = [json.loads(line) for line in unbroken.splitlines()]
    assert [(result["index"], result["prompt"]) for result in results] == list(enumerate(TEXTS))
    assert [result["text"] for result in results] == expected(tiny, TEXTS, max_tokens=16)


def test_killed_at_ten_points_and_resumed_it_is_the_unbroken_run(
    items: Path, unbroken: bytes, tiny: Path, tmp_path: Path
) -> None:
    """kill -9 while it loads and at nine random sizes of its results.

    Mutants seen to fail: the results that are there not skipped; the results that are there skipped, but prompts
    numbered from 0 again.
    """
    out, chance = tmp_path / "results.jsonl", random.Random(10)
    points = [0, *sorted(chance.randrange(1, len(unbroken)) for _ in range(9))]
    where = ["--model", str(tiny), "--device", "reference", "--max-len", "128", "--rows", "2"]
    command = ["generate", *where, "--dataset", str(items), "--out", str(out), *LIMITS]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.killed_runs", str(out), ",".join(map(str, points)), *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    history = json.loads(done.stdout)
    killed = [run for run in history if run["code"] == -9]
    assert len(killed) >= 8, history  # a run may end before the last points are seen
    assert len({run["size"] for run in killed}) >= 5, "the kills must have met different moments"
    assert history[-1]["code"] == 0, done.stderr
    assert out.read_bytes() == unbroken


@pytest.mark.parametrize("torn", [1, 2, 30, 60])
def test_a_torn_last_line_is_dropped_and_answered_again(
    torn: int, shell, items: Path, unbroken: bytes, tmp_path: Path
) -> None:
    """Mutant seen to fail: the torn line kept."""
    out = tmp_path / "results.jsonl"
    args = ["--dataset", items, "--out", out, *LIMITS, "--json"]
    assert shell("generate", *args).exit_code == 0
    lines = unbroken.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:5]) + lines[5][:-torn])
    done = shell("generate", *args)
    assert json.loads(done.stdout)["resumed_at"] == 5
    assert out.read_bytes() == unbroken


def test_a_finished_run_is_left_as_it_is(shell, items: Path, unbroken: bytes, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    for resumed_at in (0, 40):
        done = shell("generate", "--dataset", items, "--out", out, *LIMITS, "--json")
        said = json.loads(done.stdout)
        assert (said["prompts"], said["resumed_at"]) == (40, resumed_at)
        assert out.read_bytes() == unbroken


def test_another_input_or_other_settings_are_refused_with_what_differs(
    shell, items: Path, tmp_path: Path, tiny: Path
) -> None:
    """Mutant seen to fail: the description of the run not compared."""
    out = tmp_path / "results.jsonl"
    assert shell("generate", "--dataset", items, "--out", out, *LIMITS).exit_code == 0
    before = out.read_bytes()
    more = write_jsonl(tmp_path / "more.jsonl", [*TEXTS, "one more"])
    for args, differs in (
        (["--dataset", more, *LIMITS], "prompts was 40 and is 41"),
        (["--dataset", items, "--max-new-tokens", "17"], "max_tokens was 16 and is 17"),
        (["--dataset", items, *LIMITS, "--temperature", "0.5"], "temperature was 0.0 and is 0.5"),
        (["--dataset", items, *LIMITS, "--max-len", "127"], "max_len was 128 and is 127"),
        (["--dataset", items, *LIMITS, "--device-option", "copies=false"], "copies=True"),
    ):
        done = shell("generate", *args, "--out", out, "--json")
        assert done.exit_code == 1
        assert differs in json.loads(done.stdout)["error"]["message"]
        assert out.read_bytes() == before
    assert shell("generate", "--dataset", items, *LIMITS, "--out", out, "--rows", "3").exit_code == 0, (
        "rows change nothing"
    )


def test_seeded_sampling_gives_each_prompt_its_own_seed(shell, tmp_path: Path, tiny: Path) -> None:
    same = write_jsonl(tmp_path / "same.jsonl", ["The sea"] * 3)
    out = tmp_path / "results.jsonl"
    assert (
        shell("generate", "--dataset", same, "--out", out, *LIMITS, "--temperature", "1", "--seed", "5").exit_code == 0
    )
    by_hand = [expected(tiny, ["The sea"], temperature=1.0, seed=seed, max_tokens=16)[0] for seed in (5, 6, 7)]
    assert [result["text"] for result in read_jsonl(out)] == by_hand


def test_a_prompt_that_is_too_long_is_refused_before_anything_runs(shell, tmp_path: Path) -> None:
    """Mutant seen to fail: prompts checked as they are run."""
    long = write_jsonl(tmp_path / "long.jsonl", ["fox"] * 20 + ["The sea and the stars"] * 8)
    out = tmp_path / "results.jsonl"
    done = shell("generate", "--dataset", long, "--out", out, "--max-input-tokens", "4", "--json")
    message = json.loads(done.stdout)["error"]["message"]
    assert "prompt 20 has 9 tokens" in message
    assert "and 3 more are too long" in message
    assert not out.exists()
    done = shell("generate", "--dataset", long, "--out", out, "--max-input-tokens", "4", "--truncate", "--json")
    assert json.loads(done.stdout)["prompts_cut"] == 8
    assert [result.get("cut_tokens") for result in read_jsonl(out)] == [None] * 20 + [5] * 8


def test_only_a_bounded_number_of_prompts_is_read_ahead(tiny: Path) -> None:
    """Mutant seen to fail: all jobs submitted before the first answer is yielded."""
    loaded = models.load(models.llm("reference", model=str(tiny), max_len=128, max_tokens=4, rows=2))
    read = 0

    def endless():
        nonlocal read
        while True:
            yield f"prompt {read}"
            read += 1

    answers = completion.completions(
        loaded.lease.engine, completion.jobs(loaded, completion.tokenized(loaded, endless()))
    )
    for taken in range(1, 30):
        next(answers)
        assert read <= taken + completion.AHEAD * 2
    answers.close()
    loaded.close()


# ---------------------------------------------------------------------- files


def test_columns_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    jsonl = write_jsonl(tmp_path / "a.jsonl", ["x", 'two\nlines, "quoted"', "\u2028é"])
    assert list(dataset.column(jsonl, "text")) == ["x", 'two\nlines, "quoted"', "\u2028é"]
    file = tmp_path / "a.csv"
    file.write_text('id,text\n1,x\n2,"two\nlines, ""quoted"""\n', "utf-8")
    assert list(dataset.column(file, "text")) == ["x", 'two\nlines, "quoted"']


def test_parquet_is_read_where_pyarrow_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file, texts = tmp_path / "a.parquet", [f"text {number}" for number in range(1000)]
    parquet.write_table(pyarrow.table({"id": list(range(1000)), "text": texts}), file)
    assert list(dataset.column(file, "text")) == texts
    with pytest.raises(InvalidRequest, match="has no column 'words', it has id, text"):
        list(dataset.column(file, "words"))
    file.write_bytes(b"not parquet")
    with pytest.raises(InvalidRequest, match="is not a parquet file"):
        list(dataset.column(file, "text"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1")
    with pytest.raises(DeviceUnavailable, match="pip install pyarrow"):
        list(dataset.column(file, "text"))


def test_a_dataset_of_the_hub_is_streamed(tmp_path: Path, items: Path, unbroken: bytes, shell) -> None:
    """A folder is read as the hub's are; here nothing is fetched. Mutant seen to fail: the split not handed on."""
    pytest.importorskip("datasets")
    (tmp_path / "items").mkdir()
    write_jsonl(tmp_path / "items" / "train.jsonl", ["another"])
    (tmp_path / "items" / "test.jsonl").write_bytes(items.read_bytes())
    assert list(dataset.column(tmp_path / "items", "text", "test")) == TEXTS
    out = tmp_path / "results.jsonl"
    done = shell("generate", "--dataset", tmp_path / "items", "--split", "test", "--out", out, *LIMITS)
    assert done.exit_code == 0, done.stderr
    assert out.read_bytes() == unbroken
    with pytest.raises(InvalidRequest, match="no dataset with a split 'none'"):
        list(dataset.column(tmp_path / "items", "text", "none"))


def test_a_hub_id_without_datasets_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DeviceUnavailable, match="pip install datasets"):
        list(dataset.column("somebody/reviews", "text"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": 3}\n', "record 1 of .* holds int, not text"),
        ("a.jsonl", '{"text": "x"}\n{"words": "x"}\n', "record 1 of .* has no column 'text', it has words"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', "line 2 of .* is not JSON"),
        ("a.jsonl", '["x"]\n', "line 1 of .* holds list"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "not Unicode text"),
        ("a.csv", "id,text\n1\n", "holds NoneType, not text"),
        ("a.txt", "x", "ends with none of .jsonl, .csv, .parquet"),
    ],
)
def test_a_dataset_that_cannot_be_used_says_why(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(content, "utf-8")
    with pytest.raises(InvalidRequest, match=message):
        list(dataset.column(file, "text"))


# ---------------------------------------------------------------------- results


def test_results_have_one_writer(tmp_path: Path) -> None:
    """Mutant seen to fail: no lock."""
    with Results(tmp_path / "r.jsonl", {}), pytest.raises(InvalidRequest, match="another process writes"):
        Results(tmp_path / "r.jsonl", {})


def test_a_file_with_something_else_in_it_is_not_touched(tmp_path: Path) -> None:
    other = tmp_path / "notes.jsonl"
    other.write_text("mine\n", "utf-8")
    with pytest.raises(InvalidRequest, match="choose another --out"):
        Results(other, {})
    assert other.read_text("utf-8") == "mine\n"
    with Results(tmp_path / "r.jsonl", {}) as results:
        results.append({"index": 0})
    (tmp_path / "r.jsonl").write_text('{"index": 0}\n{"index": 2}\n', "utf-8")
    with pytest.raises(AccelError, match=r"line 2 of .* is not the result of prompt 1"):
        Results(tmp_path / "r.jsonl", {})


def test_differences_name_what_was_and_what_is() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b was 2 and is 3", "c was None and is 4"]
