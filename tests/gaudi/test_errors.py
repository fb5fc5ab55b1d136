"""What a user can get wrong: one clear error each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from langchain_accel import GaudiLLM, GaudiOptions, PromptTooLong
from langchain_accel.devices import gaudi
from langchain_accel.devices.base import Plan
from langchain_accel.errors import DeviceUnavailable, ModelRejected, PlanRejected
from tests.gaudi.helpers import ROOT, needs_optimum, options, plan
from tests.standins import habana
from tests.tiny_models import make

LOAD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from langchain_accel.devices import gaudi
from langchain_accel.devices.base import Plan
options = gaudi.Options(**eval(sys.argv[2]))
try:
    gaudi.load(Plan("gaudi", sys.argv[1], max_len=64, rows=2, dtype=sys.argv[3], options=options), options)
except Exception as error:
    print(type(error).__name__, error)
"""


def said(
    folder: str | Path,
    before: str = "",
    environment: dict[str, str] | None = None,
    dtype: str = "float32",
    **words: Any,
) -> str:
    """What a process of the stand-in's says that loads a model, after some other lines."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", before + LOAD, str(folder), repr(words), dtype],
        env={**os.environ, "PYTHONPATH": habana.SITE, "PT_HPU_LAZY_MODE": "", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("llama", tmp_path_factory.mktemp("errors") / "llama")


def test_without_gaudis_software_the_line_that_installs_it_is_named(llama: Path) -> None:
    llm = GaudiLLM(model=str(llama), max_len=64, options=GaudiOptions(python=sys.executable))
    with pytest.raises(DeviceUnavailable, match=r"habana_frameworks is missing.*langchain-accel\[gaudi\]"):
        llm.load()


def test_a_version_that_does_not_belong_to_the_others_is_named(llama: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "habana_torch_plugin-1.23.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: habana-torch-plugin\nVersion: 1.23.0\n")
    heard = said(llama, environment={"PYTHONPATH": os.pathsep.join([str(tmp_path), habana.SITE])})
    found = [word for word in ("optimum-habana", "habana-torch-plugin") if f"needs {word} 1.2" in heard]
    assert found, heard
    assert "belong together" in heard
    assert 'GaudiOptions(stack="transformers")' in heard


@pytest.mark.parametrize(("there", "mode"), [("0", "lazy"), ("1", "eager")])
def test_another_mode_that_was_imported_already(llama: Path, there: str, mode: str) -> None:
    """Setting the variable would not be heeded any more."""
    heard = said(llama, "import habana_frameworks.torch\n", {"PT_HPU_LAZY_MODE": there}, mode=mode)
    assert "was imported in" in heard
    assert f"set PT_HPU_LAZY_MODE={int(mode == 'lazy')} before" in heard


def test_without_a_gaudi_a_model_is_not_served(llama: Path) -> None:
    assert "no Gaudi device is on this machine" in said(llama, environment={"HABANA_STANDIN_DEVICES": "0"})


@needs_optimum
def test_a_class_that_was_used_before_is_noticed(tmp_path: Path) -> None:
    """Where plain classes are in use, optimum-habana replaces some functions and not others: the answers are wrong.

    Llama is an exception: its class is registered anew.
    """
    used = (
        "import sys\nfrom transformers import AutoConfig, AutoModelForCausalLM\n"
        "AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]))\n"
    )
    heard = said(make("bloom", tmp_path / "bloom"), used, {"PT_HPU_LAZY_MODE": "1"})
    assert "BloomForCausalLM is transformers' own class" in heard
    assert "the class was in use in this process before" in heard


@needs_optimum
@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("opt", "'opt' was not verified on optimum-habana.*known to answer wrongly: positions.*allow_unverified=True"),
        ("mistral", "attends to windows of 8 columns.*set max_len <= 8"),
    ],
)
def test_a_model_that_may_be_answered_wrongly_is_refused(architecture: str, reason: str, tmp_path: Path) -> None:
    folder = make(architecture, tmp_path / architecture)
    with pytest.raises(ModelRejected, match=reason):
        GaudiLLM(model=str(folder), max_len=64, options=options()).load()


@pytest.mark.parametrize(
    ("content", "dtype", "reason"),
    [
        ("{", "auto", "is no JSON file of Intel Neural Compressor"),
        ('{"mode": "MEASURE"}', "auto", 'measure first.*then serve with mode "QUANTIZE"'),
        ('{"mode": "QUANTIZE"}', "float32", "FP8 replaces bfloat16 arithmetic"),
    ],
)
def test_fp8_settings_that_cannot_be_served(content: str, dtype: str, reason: str, tmp_path: Path) -> None:
    settings = tmp_path / "quant.json"
    settings.write_text(content)
    asked = gaudi.Options(quant_config=str(settings))
    with pytest.raises(PlanRejected, match=reason):
        gaudi.placement(Plan("gaudi", "x", dtype=dtype, options=asked), asked)


def test_fp8_without_what_computes_it(llama: Path, tmp_path: Path) -> None:
    """First the compressor is missing, then the kernels of the device."""
    settings = tmp_path / "quant.json"
    settings.write_text(json.dumps({"mode": "QUANTIZE"}))
    heard = said(llama, dtype="auto", quant_config=str(settings))
    assert "pip install neural-compressor-pt" in heard
    (tmp_path / "neural_compressor").mkdir()
    (tmp_path / "neural_compressor" / "__init__.py").touch()
    path = os.pathsep.join([str(tmp_path), habana.SITE])
    heard = said(llama, "", {"PYTHONPATH": path}, "auto", quant_config=str(settings))
    assert "needs FP8 kernels that this Gaudi's software lacks: cast_to_fp8_v2" in heard


def test_several_gaudi_without_optimum_habana() -> None:
    asked = gaudi.Options(stack="transformers")
    with pytest.raises(PlanRejected, match=r'tensor_parallel_size=2 needs stack="optimum"'):
        gaudi.placement(Plan("gaudi", "x", tensor_parallel_size=2, options=asked), asked)


def test_ranks_that_cannot_share_a_model() -> None:
    from langchain_accel.devices.gaudi.sharding import refuse

    def config(kind: str, heads: int, kv_heads: int) -> Any:
        entries = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
        return SimpleNamespace(model_type=kind, to_dict=lambda: entries)

    refuse(config("llama", 8, 4), 4, allow_unverified=False)
    with pytest.raises(PlanRejected, match="cannot share 8 heads and 2 key/value heads evenly"):
        refuse(config("llama", 8, 2), 4, allow_unverified=False)
    with pytest.raises(ModelRejected, match="'mpt' was not verified over several Gaudi"):
        refuse(config("mpt", 8, 8), 4, allow_unverified=False)
    refuse(config("mpt", 8, 8), 4, allow_unverified=True)


@pytest.fixture(scope="module")
def loaded(llama: Path) -> Iterator[GaudiLLM]:
    asked = plan(llama, rows=2, max_input_tokens=20)
    llm = GaudiLLM(model=str(llama), rows=2, max_len=64, dtype="float32", options=asked.options).load()
    yield llm
    llm.close()


@needs_optimum
def test_a_prompt_over_the_longest_input_is_refused(loaded: GaudiLLM) -> None:
    """Never cut, as `max_input_tokens` of optimum-habana's scripts does."""
    with pytest.raises(PromptTooLong, match=r"so the longest prompt is 20"):
        loaded.invoke("one two three " * 10)


@needs_optimum
def test_an_answer_ends_at_the_last_column(loaded: GaudiLLM) -> None:
    result = loaded.generate(["one two"], max_tokens=None, ignore_eos=True)
    used = len(loaded.get_token_ids("one two"))
    assert result.generations[0][0].generation_info["finish_reason"] == "length"
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["completion_tokens"] == 64 - used
