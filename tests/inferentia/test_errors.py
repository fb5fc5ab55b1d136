"""What a user can get wrong: one clear error each, before anything is compiled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optimum.neuron", reason="needs optimum-neuron: .ci/run builds a virtual environment for it")

from langchain_accel import InferentiaLLM, InferentiaOptions, PromptTooLong
from langchain_accel.devices import inferentia
from langchain_accel.devices.base import Plan, Rank
from langchain_accel.devices.inferentia import Options
from langchain_accel.devices.inferentia.export import export
from langchain_accel.errors import DeviceLost, DeviceUnavailable, InvalidRequest, ModelRejected, PlanRejected
from tests.standins import neuron
from tests.standins.neuron.device import SESSIONS
from tests.tiny_models import make

ROOT = Path(__file__).resolve().parents[2]

LOAD = """
import sys
from langchain_accel.devices import inferentia
from langchain_accel.devices.base import Plan
from langchain_accel.errors import DeviceUnavailable
try:
    inferentia.load(Plan("inferentia", sys.argv[1]), inferentia.Options())
except DeviceUnavailable as error:
    print(error)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("llama", tmp_path_factory.mktemp("errors") / "llama")


@pytest.fixture(autouse=True)
def _nothing_is_compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every error of this module comes before the compiler is asked, but for those of a loaded model."""
    compiled = neuron.COUNTERS.compiled, neuron.COUNTERS.cache_hits
    yield
    if "loaded" not in request.fixturenames:
        assert (neuron.COUNTERS.compiled, neuron.COUNTERS.cache_hits) == compiled


@pytest.fixture
def _no_device() -> Iterator[None]:
    neuron.set_instance("")
    yield
    neuron.set_instance("inf2.24xlarge")


def plan_of(folder: Path, **changes: Any) -> Plan:
    return Plan("inferentia", str(folder), **{"rows": 2, "max_len": 32, "dtype": "float32", **changes})


def refused(plan: Plan, options: Options | None = None) -> str:
    with pytest.raises((PlanRejected, ModelRejected)) as error:
        inferentia.load(plan, options or Options())
    return str(error.value)


def said_without_the_standin(*folders: Path) -> str:
    """What a process says that has optimum-neuron and, of the Neuron packages, only what stands in these folders."""
    code = f"import sys; sys.path[:0] = {[str(folder) for folder in folders]!r}\n{LOAD}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "anything"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def placeholder(folder: Path, name: str, version: str, content: str | None) -> Path:
    """Install a package as PyPI's placeholders are: with metadata, and nothing usable behind the name."""
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if content is not None:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(content)
    return folder


def test_without_the_neuron_packages_the_line_that_installs_them_is_named() -> None:
    said = said_without_the_standin()
    assert "torch_neuronx cannot be imported" in said
    assert 'pip install "langchain-accel[inferentia]" "optimum-neuron[neuronx]"' in said
    assert "AWS's Neuron package index as --extra-index-url" in said


def test_pypis_placeholder_is_called_one(tmp_path: Path) -> None:
    """Its metadata alone convinces optimum-neuron that it is installed.

    Mutant: `require` asks `is_neuronx_available()`.
    """
    wrong = 'raise ImportError("WRONG PACKAGE. Please install the package from Neuron Repository")\n'
    said = said_without_the_standin(placeholder(tmp_path, "torch_neuronx", "1.0", wrong))
    assert "torch-neuronx 1.0 is installed and cannot be imported (WRONG PACKAGE" in said
    assert "on PyPI this name is a placeholder, the real package comes from AWS's own index" in said


def test_a_placeholder_with_nothing_to_import_is_called_one(tmp_path: Path) -> None:
    """The compiler's placeholder installs a folder with a dash in its name."""
    placeholder(tmp_path, "torch_neuronx", "2.8", "")
    said = said_without_the_standin(placeholder(tmp_path, "neuronx_cc", "1.0.post1", None))
    assert "neuronx-cc 1.0.post1 is installed and cannot be imported" in said


@pytest.mark.usefixtures("_no_device")
def test_without_a_neuron_device_a_model_is_not_served(checkpoint: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=r"no Neuron device.*run on an inf2.*devices\.inferentia\.export"):
        inferentia.load(plan_of(checkpoint), Options())


@pytest.mark.usefixtures("_no_device")
def test_without_a_neuron_device_an_export_names_its_instance(checkpoint: Path) -> None:
    with pytest.raises(PlanRejected, match=r"set instance to one of inf2\.xlarge"):
        export(plan_of(checkpoint), Options())
    with pytest.raises(
        PlanRejected, match=r"instance='inf3\.xlarge' is not known; the instance types are inf2\.xlarge"
    ):
        export(plan_of(checkpoint), Options(instance="inf3.xlarge"))
    with pytest.raises(PlanRejected, match=r"compiles for trn1, not trn2; set NEURON_PLATFORM_TARGET_OVERRIDE=trn2"):
        export(plan_of(checkpoint), Options(instance="trn2.48xlarge"))


def test_an_instance_of_another_family_is_refused(checkpoint: Path) -> None:
    assert "has trn2 cores, this machine trn1" in refused(plan_of(checkpoint), Options(instance="trn2.48xlarge"))


def test_cores_that_are_not_there_are_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "asks for 24 NeuronCores and there are 12" in refused(plan_of(checkpoint, tensor_parallel_size=24))
    monkeypatch.setenv("NEURON_RT_NUM_CORES", "2")
    assert "asks for 4 NeuronCores and there are 2" in refused(plan_of(checkpoint, tensor_parallel_size=4))


def test_cores_that_cannot_load_the_model_are_refused(checkpoint: Path) -> None:
    assert "tensor_parallel_size=3 cannot split 2 KV heads" in refused(plan_of(checkpoint, tensor_parallel_size=3))


def test_a_plan_that_does_not_fit_is_refused(checkpoint: Path) -> None:
    message = refused(plan_of(checkpoint, rows=500_000, max_len=128))
    assert "KV cache of 500000 rows x 128 columns" in message
    assert "; set tensor_parallel_size=2, or rows <= " in message


def test_a_length_beyond_the_models_positions_is_refused(checkpoint: Path) -> None:
    assert "max_len=129 is beyond the 128 positions" in refused(plan_of(checkpoint, max_len=129))


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("gpt2", {}, "model type 'gpt2' is not served on Inferentia"),
        ("mixtral", {}, "model type 'mixtral' is not served on Inferentia"),
        ("phi3", {}, "attention window of 8 tokens"),
        ("qwen2-window", {}, "attention window of 8 tokens"),
        ("llama", {"attention_bias": True}, "its attention biases are left out"),
        ("llama", {"head_dim": 16}, "its head_dim 16 is not hidden_size / heads"),
        (
            "qwen2",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "its rope scaling 'linear' is not computed",
        ),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "its rope scaling 'dynamic'"),
    ],
)
def test_a_model_that_would_answer_wrongly_is_refused(
    architecture: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """Each of these exports and runs, and gives other tokens than transformers.

    Mutant: `_refuse_ignored` and the window of `_refuse_longer` do nothing.
    """
    assert reason in refused(plan_of(make(architecture, tmp_path / "model", **changes)))


def test_a_folder_without_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    assert "has no safetensors weights" in refused(plan_of(tmp_path))


def test_half_an_exported_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "neuron_config.json").write_text("{}")
    assert "has neuron_config.json and no model.pt" in refused(plan_of(tmp_path))
    (tmp_path / "neuron_config.json").write_text("{")
    assert "cannot be read" in refused(plan_of(tmp_path))


def test_several_ranks_are_refused(checkpoint: Path) -> None:
    with pytest.raises(PlanRejected, match="one process for all its cores, got 2 ranks"):
        inferentia.load(plan_of(checkpoint), Options(), Rank(0, 2))


@pytest.fixture(scope="module")
def loaded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferentiaLLM]:
    options = InferentiaOptions(cache_dir=str(tmp_path_factory.mktemp("exported")))
    llm = InferentiaLLM(model=str(checkpoint), rows=2, max_len=32, dtype="float32", options=options).load()
    yield llm
    llm.close()


def test_a_prompt_over_the_compiled_length_is_refused(loaded: InferentiaLLM) -> None:
    """The library would crop it, or write past the end of the KV cache, without a word."""
    with pytest.raises(PromptTooLong, match="32"):
        loaded.invoke("one two three " * 40)


def test_an_answer_ends_at_the_compiled_length(loaded: InferentiaLLM) -> None:
    """Prompt and answer share the columns: the answer ends with the last one, and says so."""
    result = loaded.generate(["one two three"], max_tokens=None, ignore_eos=True)
    used = len(loaded.get_token_ids("one two three"))
    assert result.generations[0][0].generation_info["finish_reason"] == "length"
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["completion_tokens"] == 32 - used
    with pytest.raises(InvalidRequest, match="max_tokens"):
        loaded.invoke("one two three", max_tokens=0)


def test_a_step_that_the_runtime_refuses_loses_the_device(loaded: InferentiaLLM) -> None:
    """What the rows hold is unknown afterwards, so nothing goes on there; the next call loads again.

    Mutant: the runtime's errors pass as they are, and the engine goes on with the next request.
    """
    answer = loaded.invoke("one two three", max_tokens=4)
    device = loaded._engine_lease().engine._loop.runner.device
    del SESSIONS[device._model._traced_model.nxd_model.session]  # as if the device had been reset
    with pytest.raises(DeviceLost, match="the Neuron runtime failed in a step: RuntimeError"):
        loaded.invoke("one two three", max_tokens=4)
    assert loaded.invoke("one two three", max_tokens=4) == answer
