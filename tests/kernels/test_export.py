"""A folder of rounded weights: made by one command, whole or not at all, and served like the model it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_accel_kernels", reason="pip install ./kernels")
pytest.importorskip("torch")
pytest.importorskip("typer", reason="the command line is an extra")

from safetensors import safe_open
from typer.testing import CliRunner

from langchain_accel import ChatXeon, XeonOptions
from langchain_accel.cli.app import app
from langchain_accel.devices import folders
from langchain_accel.devices.native import packed
from langchain_accel.errors import ModelRejected, PlanRejected
from tests.kernels.holding import make_wide
from tests.tiny_models import make

ASKED = ["--device", "xeon", "--max-len", "96", "--json", "--device-option"]
INT8 = [*ASKED, "weights=int8"]


def run(*args: str | Path) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, args)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wide("qwen2", tmp_path_factory.mktemp("model") / "qwen2")


@pytest.fixture(scope="module", params=["int8", "int4"])
def weights(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def exported(model: Path, weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / weights
    done = run("--model", model, "--out", folder, *ASKED, f"weights={weights}")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"folder": str(folder), "pushed_to": None}
    return folder


def answers(folder: Path, weights: str, **fields: Any) -> list[str]:
    options = XeonOptions(weights=weights, threads=1)
    llm = ChatXeon(model=str(folder), rows=2, max_len=96, max_tokens=12, temperature=0.0, options=options, **fields)
    said = [str(message.content) for message in llm.batch(["What is the capital?", "One two three"])]
    llm.close()
    return said


def test_it_answers_as_the_model_does(model: Path, exported: Path, weights: str) -> None:
    """Mutant seen to fail: biases left out of the file."""
    assert not (exported / "model.safetensors").exists()
    assert answers(exported, weights) == answers(model, weights)
    assert answers(exported, weights, dtype="float32") == answers(model, weights, dtype="float32")


def test_nothing_else_needs_to_be_said(exported: Path) -> None:
    """The folder alone says how its weights are held; other rows and columns than it was exported with are served."""
    llm = ChatXeon(model=str(exported), rows=3, max_len=50, max_tokens=4)
    assert llm.invoke("One two three").usage_metadata["output_tokens"] > 0
    llm.close()


def test_the_file_is_what_it_says(exported: Path) -> None:
    """safetensors' own reader opens it; every array begins at a line of the cache."""
    model = packed.read(exported)
    with safe_open(exported / packed.FILE, "np") as file:
        for name in model.arrays:
            if name != "embedding":
                np.testing.assert_array_equal(file.get_tensor(name), model.arrays[name])
    assert all(array.ctypes.data % 64 == 0 for array in model.arrays.values())


@pytest.mark.parametrize("change", ["cut", "other format", "other weights"])
def test_a_damaged_file_is_refused(change: str, exported: Path, tmp_path: Path) -> None:
    """Mutants seen to fail: no self-check; the end of the file not compared."""
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / packed.FILE
    whole = path.read_bytes()
    if change == "cut":
        path.write_bytes(whole[:-4096])
    elif change == "other format":
        path.write_bytes(whole.replace(b'"format": "3"', b'"format": "9"'))
    else:
        path.write_bytes(whole[: len(whole) // 2] + bytes(256 - b & 255 for b in whole[len(whole) // 2 :]))
    wanted = {"cut": "it ends before", "other format": "reads format 3", "other weights": "refused rather than"}
    with pytest.raises(ModelRejected, match=wanted[change]):
        answers(tmp_path, "exact")


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(model: Path, exported: Path, tmp_path: Path) -> None:
    def said(*args: str | Path) -> str:
        done = run("--out", tmp_path / "out", *args)
        assert done.exit_code == 1
        assert not (tmp_path / "out").exists()
        return str(json.loads(done.stdout)["error"]["message"])

    assert "add --device-option weights=int8" in said("--model", model, "--device", "xeon", "--json")
    assert "is exported already" in said("--model", exported, *INT8)
    assert "'phi' is none of" in said("--model", make("phi", tmp_path / "phi"), *INT8)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine", "utf-8")
    done = run("--model", model, "--out", tmp_path / "mine", *INT8)
    assert "is in use" in json.loads(done.stdout)["error"]["message"]


def test_an_exported_folder_without_the_kernels_says_so(exported: Path) -> None:
    without = XeonOptions(weights="int8", kernels=False)
    with pytest.raises(ModelRejected, match="do not serve it here: kernels=False"):
        ChatXeon(model=str(exported), max_len=64, options=without).invoke("One")


def test_several_ranks_are_refused(exported: Path) -> None:
    with pytest.raises(PlanRejected, match="one rank, and the plan asks for 2"):
        ChatXeon(model=str(exported), max_len=64, tensor_parallel_size=2).invoke("One")


def test_a_plan_counts_the_bytes_that_there_are(model: Path, exported: Path, weights: str) -> None:
    """Mutant seen to fail: the embedding left out."""
    size = (exported / packed.FILE).stat().st_size
    for folder, asked in ((exported, []), (model, ["--device-option", f"weights={weights}"])):
        arguments = ["--model", folder, "--device", "xeon", "--max-len", "96", *asked, "--json"]
        done = CliRunner().invoke(app, ["plan", *map(str, arguments)])
        assert done.exit_code == 0, done.output
        # The file also holds scales, norms and the self-check's logits, which are small where the model is not.
        assert 0.5 * size < json.loads(done.stdout)["weights"] <= size


def test_it_goes_to_the_hub_only_where_that_is_asked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[tuple[Path, str]] = []
    monkeypatch.setattr(folders, "upload", lambda folder, repository: uploaded.append((folder, repository)))
    assert run("--model", model, "--out", tmp_path / "one", *INT8).exit_code == 0
    assert uploaded == []
    assert run("--model", model, "--out", tmp_path / "two", *INT8, "--push-to-hub", "somebody/tiny").exit_code == 0
    assert uploaded == [(tmp_path / "two", "somebody/tiny")]
