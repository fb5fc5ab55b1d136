"""Export as a user wants it: once, whole, found again, refused when it is for something else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optimum.neuron", reason="needs optimum-neuron: .ci/run builds a virtual environment for it")

from huggingface_hub.utils import filter_repo_objects

from langchain_accel import ChatInferentia, InferentiaOptions
from langchain_accel.devices import inferentia
from langchain_accel.devices.base import Plan
from langchain_accel.devices.inferentia import Options, artefact
from langchain_accel.devices.inferentia.export import export, main
from langchain_accel.devices.inferentia.plan import Layout, Numbers, cost
from langchain_accel.errors import PlanRejected
from langchain_accel.runtime.checkpoint import HUB_FILES
from tests.standins import neuron
from tests.standins.neuron.device import SESSIONS
from tests.tiny_checkpoint import make_tiny_checkpoint
from tests.tiny_models import make

ROOT = Path(__file__).resolve().parents[2]


def plan_of(folder: Path, **changes: Any) -> Plan:
    fields = {"rows": 3, "max_len": 64, "dtype": "float32", "tensor_parallel_size": 2, **changes}
    return Plan("inferentia", str(folder), **fields)


def answer(folder: Path | str, options: InferentiaOptions) -> str:
    llm = ChatInferentia(
        model=str(folder), rows=3, max_len=64, dtype="float32", tensor_parallel_size=2, options=options
    )
    try:
        return str(llm.invoke("Tell me a story", max_tokens=12).content)
    finally:
        llm.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two end-of-sequence tokens and a chat template, which optimum-neuron does not save."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", max_position_embeddings=128)


@pytest.fixture(scope="module")
def warm(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Options with a cache that holds the plan already."""
    options = Options(cache_dir=str(tmp_path_factory.mktemp("warm")))
    export(plan_of(checkpoint), options)
    return options


@pytest.fixture(scope="module")
def exported(checkpoint: Path, warm: Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(plan_of(checkpoint), warm, tmp_path_factory.mktemp("out") / "tiny-neuron")


def test_the_first_use_exports_and_the_second_finds_it(checkpoint: Path, cache_dir: str) -> None:
    """Mutant: the key holds the time."""
    stages: list[tuple[str, int, int]] = []
    options = Options(cache_dir=cache_dir)
    loaded = inferentia.load(plan_of(checkpoint), options, progress=lambda *stage: stages.append(stage))
    loaded.close()
    assert [stage for stage in stages if stage[0].startswith("compiling")] == [
        ("compiling (minutes to an hour)", done, 3) for done in range(4)
    ]
    compiled = neuron.COUNTERS.compiled, neuron.COUNTERS.cache_hits
    stages.clear()
    inferentia.load(plan_of(checkpoint), options, progress=lambda *stage: stages.append(stage)).close()
    assert (neuron.COUNTERS.compiled, neuron.COUNTERS.cache_hits) == compiled
    assert {stage for stage, _, _ in stages} == {"reading the model", "loading onto NeuronCores"}
    assert len([path for path in Path(cache_dir).iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("changes", [{"rows": 2}, {"max_len": 32}, {"tensor_parallel_size": 1}, {"dtype": "bfloat16"}])
def test_another_plan_is_another_export(checkpoint: Path, warm: Options, changes: dict[str, Any]) -> None:
    """Mutant: the key without what is compiled."""
    found = export(plan_of(checkpoint, **changes), warm)
    assert found != export(plan_of(checkpoint), warm)
    assert found == export(plan_of(checkpoint, **changes), warm)


def test_a_local_folder_is_exported_without_asking_the_hub(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: optimum-neuron's own lookup of compiled graphs left on."""
    from optimum.neuron.models.inference.backend import pretrained_model

    asked = []
    monkeypatch.setattr(pretrained_model, "hub_neuronx_cache", lambda **entry: asked.append(entry) or nullcontext())
    assert artefact.is_artefact(export(plan_of(checkpoint), Options(cache_dir=str(tmp_path))))
    assert not asked


def test_other_weights_are_another_export(checkpoint: Path, warm: Options, tmp_path: Path) -> None:
    """Mutant: the key without the weights' content: the old answers go on."""
    options = warm
    other = make_tiny_checkpoint(tmp_path / "other", max_position_embeddings=128, seed=1)
    assert export(plan_of(checkpoint), options) != export(plan_of(other), options)
    moved = make_tiny_checkpoint(tmp_path / "moved", max_position_embeddings=128)
    assert export(plan_of(checkpoint), options) == export(plan_of(moved), options)


CHILD = """
import sys
from pathlib import Path
from tests.inferentia import conftest  # installs the stand-in, with a compile cache of this process's own
from langchain_accel.devices.base import Plan
from langchain_accel.devices.inferentia import Options, artefact
from langchain_accel.devices.inferentia.export import export
from tests.standins import neuron

plan = Plan("inferentia", sys.argv[1], rows=3, max_len=64, dtype="float32", tensor_parallel_size=2)
print(neuron.COUNTERS.compiled, export(plan, Options(cache_dir=sys.argv[2])), neuron.COUNTERS.compiled)
"""


def test_two_processes_that_export_at_once_compile_once(checkpoint: Path, cache_dir: str) -> None:
    """Each has a compile cache of its own, so that the second would compile if it did not wait for the first.

    Mutant: `find_or_make` without its lock.
    """
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(checkpoint), cache_dir]
    asking = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=240)[0].split() for process in asking]
    assert [process.returncode for process in asking] == [0, 0]
    assert said[0][1] == said[1][1]
    assert sorted((before, after) for before, _, after in said) == [("0", "0"), ("0", "2")]


def test_an_exported_folder_serves_as_the_model(
    checkpoint: Path, exported: Path, warm: Options, cache_dir: str
) -> None:
    """With its own tokenizer, template and end-of-sequence tokens; nothing is compiled, nothing goes to the cache."""
    expected = answer(checkpoint, warm)
    compiled = neuron.COUNTERS.compiled
    assert answer(exported, Options(cache_dir=cache_dir)) == expected
    assert neuron.COUNTERS.compiled == compiled
    assert not Path(cache_dir).exists()


def test_an_exported_folder_holds_all_that_serving_needs(exported: Path) -> None:
    """Mutant: `copy_beside` overwrites the config that the export wrote."""
    names = {path.name for path in exported.iterdir()}
    assert names >= {"model.pt", "neuron_config.json", "config.json", "tokenizer.json", "chat_template.jinja"}
    assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"] == [2, 4]
    assert len(list((exported / "checkpoint" / "weights").glob("*.safetensors"))) == 2
    assert json.loads((exported / "config.json").read_text())["dtype"] == "float32"


def test_a_pushed_folder_is_fetched_whole_and_serves_by_its_id(
    exported: Path, warm: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub client takes every file that an export consists of, and finds it offline in its cache.

    Mutant: `HUB_FILES` without `model.pt`.
    """
    files = [str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()]
    assert sorted(filter_repo_objects(files, allow_patterns=HUB_FILES)) == sorted(files)
    commit = "0" * 40
    stored = tmp_path / "hub" / "models--somebody--tiny-neuron"
    shutil.copytree(exported, stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert answer("somebody/tiny-neuron", warm) == answer(str(exported), warm)


def test_a_cache_that_cannot_be_written_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PlanRejected, match=r"exported models are kept in .*file/neuron, which cannot be used"):
        export(plan_of(checkpoint), Options(cache_dir=str(tmp_path / "file" / "neuron")))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"rows": 8}, "rows is 3 there and 8 here"),
        ({"max_len": 32}, "max_len is 64 there and 32 here"),
        ({"tensor_parallel_size": 4}, "tensor_parallel_size is 2 there and 4 here"),
        ({"dtype": "bfloat16"}, "dtype is 'float32' there and 'bfloat16' here"),
    ],
)
def test_an_export_for_other_shapes_is_refused(exported: Path, changes: dict[str, Any], difference: str) -> None:
    """Mutant: the library's own check only, which knows neither rows nor lengths."""
    with pytest.raises(PlanRejected) as refused:
        inferentia.load(plan_of(exported, **changes), Options())
    message = str(refused.value)
    assert difference in message
    asked = plan_of(exported, **changes)
    assert (
        f"python -m langchain_accel.devices.inferentia.export ORIGINAL_MODEL OUT --rows {asked.rows} --max-len "
        f"{asked.max_len} --tensor-parallel-size {asked.tensor_parallel_size} --dtype {asked.dtype}"
    ) in message


@pytest.mark.parametrize(
    ("entry", "value", "difference"),
    [
        ("optimum_neuron_version", "0.4.4", "optimum-neuron is '0.4.4' there and '0.4.5' here"),
        ("neuronxcc_version", "2.20.1", "neuronx-cc is '2.20.1' there"),
        ("target", "trn2", "kind of core is 'trn2' there and 'trn1' here"),
        ("on_device_sampling", True, "sampling on the device is True there and False here"),
        ("max_context_length", 16, "longest prompt is 16 there and 64 here"),
    ],
)
def test_an_export_by_others_is_refused(
    exported: Path, tmp_path: Path, entry: str, value: Any, difference: str
) -> None:
    """An export of `optimum-cli` samples on the device: it runs, and ignores penalties and grammars."""
    written = json.loads((exported / "neuron_config.json").read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "neuron_config.json").write_text(json.dumps({**written, entry: value}))
    (copy / "model.pt").write_bytes(b"")
    with pytest.raises(PlanRejected, match=difference):
        inferentia.load(plan_of(copy), Options())


def test_without_leave_to_export_the_command_is_named(checkpoint: Path, warm: Options, cache_dir: str) -> None:
    """Mutant: `export=False` is not looked at."""
    compiled = neuron.COUNTERS.compiled
    with pytest.raises(PlanRejected, match=r"export=False forbids.*python -m langchain_accel\.devices\.inferentia"):
        inferentia.load(plan_of(checkpoint), Options(cache_dir=cache_dir, export=False))
    assert neuron.COUNTERS.compiled == compiled
    inferentia.load(plan_of(checkpoint), replace(warm, export=False)).close()


def test_the_command_line_exports_what_the_error_says(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    words = ["--rows", "3", "--max-len", "64", "--tensor-parallel-size", "2", "--dtype", "float32"]
    assert main([str(checkpoint), str(out), *words]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    inferentia.load(plan_of(out), Options()).close()
    assert main([str(checkpoint), str(out), *words]) == 1
    assert "is in use; name a folder that is absent or empty" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_what_was_cached_is_copied_and_not_compiled_again(checkpoint: Path, warm: Options, tmp_path: Path) -> None:
    known = export(plan_of(checkpoint), warm)
    compiled = neuron.COUNTERS.compiled, neuron.COUNTERS.cache_hits
    out = export(plan_of(checkpoint), warm, tmp_path / "out")
    assert (neuron.COUNTERS.compiled, neuron.COUNTERS.cache_hits) == compiled
    assert (out / "model.pt").read_bytes() == (known / "model.pt").read_bytes()


@pytest.mark.parametrize(("cores", "architecture"), [(1, "llama"), (2, "llama-tied"), (4, "qwen3"), (4, "llama")])
def test_each_core_holds_what_the_arithmetic_says(
    cores: int, architecture: str, tmp_path: Path, cache_dir: str
) -> None:
    """KV cache to the byte. Weights within a hundredth: the arithmetic leaves out norms of heads and rank numbers.

    Mutants: KV heads are not padded; a tied head is counted once.
    """
    folder = make(architecture, tmp_path / architecture)
    session = set(SESSIONS)
    loaded = inferentia.load(plan_of(folder, tensor_parallel_size=cores), Options(cache_dir=cache_dir))
    (opened,) = [SESSIONS[number] for number in SESSIONS.keys() - session]
    expected = cost(Numbers.of(json.loads((folder / "config.json").read_text())), Layout(3, 64, cores, 4))
    for weights, states in zip(opened.weights, opened.states, strict=True):
        assert sum(state.nbytes for state in states.values()) == expected.cache
        assert sum(weight.nbytes for weight in weights.values()) == pytest.approx(expected.weights, rel=0.01)
    assert len(opened.weights) == cores
    loaded.close()


def test_a_checkpoint_of_transformers_5_keeps_its_rotary_base(tmp_path: Path, cache_dir: str) -> None:
    """Version 5 writes `rope_parameters`; version 4 would take the default base without a word.

    Mutant: `_adopt_new_ropes` does nothing.
    """
    old = make("llama", tmp_path / "old", rope_theta=500.0)
    new = make("llama", tmp_path / "new", rope_theta=500.0)
    config = json.loads((new / "config.json").read_text())
    assert config.pop("rope_theta") == 500.0
    config.pop("rope_scaling", None)
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    (new / "config.json").write_text(json.dumps(config))
    options = Options(cache_dir=cache_dir)
    exported = [export(plan_of(folder), options) for folder in (old, new)]
    assert [json.loads((folder / "config.json").read_text())["rope_theta"] for folder in exported] == [500.0, 500.0]
