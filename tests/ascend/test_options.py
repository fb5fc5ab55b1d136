"""Words of MindFormers' tutorials mean today's; MindSpore is not needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from langchain_accel import AscendLLM, AscendOptions, ChatAscend
from langchain_accel.devices.ascend import placement
from langchain_accel.devices.ascend.options import translated
from langchain_accel.devices.base import Placement, Plan
from langchain_accel.errors import PlanRejected

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ascend.md").read_text(encoding="utf-8")

YAML = """
run_mode: 'predict'
use_parallel: True
context: {mode: 0, device_target: "Ascend", device_id: 3, max_device_memory: "58GB"}
parallel_config: {data_parallel: 1, model_parallel: 2}
model:
  model_config: {type: LlamaConfig, batch_size: 2, seq_length: 1024, compute_dtype: "float16", use_past: True}
"""


@pytest.fixture
def yaml(tmp_path: Path) -> str:
    """A file such as MindFormers' predict_llama2_7b.yaml."""
    file = tmp_path / "predict_llama2_7b.yaml"
    file.write_text(YAML, "utf-8")
    return str(file)


def test_each_older_word_is_noted_with_todays() -> None:
    """Mutant seen to fail: the note names the older word twice."""
    with pytest.warns(FutureWarning) as noted:
        AscendOptions(seq_length=2048, batch_size=1, load_checkpoint="somewhere", use_past=True)
    notes = [str(note.message) for note in noted]
    for today in ("write max_len=2048", "write rows=1", "write model='somewhere'", "the KV cache is always on"):
        assert sum(today in note for note in notes) == 1
    assert all(note.filename == __file__ for note in noted), "the note must point at the user's line"


@pytest.mark.parametrize("model", [ChatAscend, AscendLLM])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_takes_over_what_options_and_file_say(model: type[ChatAscend], yaml: str) -> None:
    """What options say wins over the file. Mutant seen to fail: the file wins."""
    llm = model(model="somewhere", options=AscendOptions(seq_length=512, config_file=yaml))
    assert (llm.max_len, llm.rows, llm.dtype, llm.tensor_parallel_size) == (512, 2, "bfloat16", 2)
    assert llm.options == AscendOptions(device_id=3, max_device_memory="58GB")
    with pytest.raises(ValidationError, match=r"yaml: rows=2 and rows=4 contradict each other; keep rows"):
        model(model="somewhere", rows=4, options=AscendOptions(config_file=yaml))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_plan_takes_them_over_as_well(yaml: str) -> None:
    plan, options = translated(Plan("ascend", "somewhere"), AscendOptions(seq_length=512))
    assert (plan.max_len, plan.options, options) == (512, AscendOptions(), AscendOptions())
    with pytest.raises(PlanRejected, match="load_checkpoint='elsewhere' and model='somewhere' contradict"):
        translated(Plan("ascend", "somewhere"), AscendOptions(load_checkpoint="elsewhere"))


@pytest.mark.parametrize("name", ["llama2_7b", "glm4_9b", "qwen2_5_7b_instruct", "llama3_1_8b"])
def test_names_that_mindformers_once_knew_are_refused_with_todays_way(name: str) -> None:
    """Mutant seen to fail: the name is taken for a hub id, and looked for there."""
    with pytest.raises(ValidationError, match="a Hugging Face checkpoint, or a hub id"):
        ChatAscend(model=name)


def test_a_cache_less_model_is_refused_wherever_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(PlanRejected, match="use_past=False is not served"):
        AscendOptions(use_past=False)
    file = tmp_path / "old.yaml"
    file.write_text(YAML.replace("use_past: True", "use_past: False"), "utf-8")
    with pytest.raises(ValidationError, match="use_past=False is not served"):
        ChatAscend(model="somewhere", options=AscendOptions(config_file=str(file)))


@pytest.mark.parametrize("content", [None, "- a list", "model: [", "model: {model_config: {compute_dtype: int4}}"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "file.yaml"
    if content is not None:
        file.write_text(content, "utf-8")
    with pytest.raises(ValidationError, match="is not a yaml file of MindFormers that can be used"):
        ChatAscend(model="somewhere", options=AscendOptions(config_file=str(file)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"target": "gpu"}, "target must be one of 'ascend', 'cpu', got 'gpu'"),
        ({"device_id": -1}, "device_id must be at least 0, got -1"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"prefill_chunk": 8}, "prefill_chunk at least 16 tokens, got 32 and 8"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(PlanRejected, match=said):
        AscendOptions(**wrong)


def test_the_model_never_runs_in_this_process() -> None:
    """A process for each rank. Mutant seen to fail: isolated only where an interpreter is named."""
    plan = Plan("ascend", "somewhere", tensor_parallel_size=2)
    found = placement(plan, AscendOptions(python="elsewhere/bin/python"))
    assert (found.ranks, found.isolated, found.python) == (2, True, "elsewhere/bin/python")
    assert found.resources == (("NPU", 1.0),)
    assert isinstance(found, Placement)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_the_page_says_of_models_that_are_not_loaded_yet_is_so() -> None:
    """Its first and last example make models, and the last says what their fields are."""
    first, _, last = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {"AscendLLM": AscendLLM}
    exec(first, names)
    exec(last, names)
    assert isinstance(names["llm"], AscendLLM)


def test_every_word_of_the_options_is_on_the_page_or_is_todays() -> None:
    """Older words stand in the page's table."""
    for word in ("load_checkpoint", "seq_length", "batch_size", "use_past", "device_id", "max_device_memory"):
        assert f"`{word}" in PAGE
