"""Which models are served, and what is said of those that are not; MindSpore is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from langchain_accel.devices.ascend.configs import packed, read_config
from langchain_accel.errors import ModelRejected, PlanRejected
from tests.tiny_checkpoint import make_tiny_checkpoint


def changed(tmp_path: Path, kind: str = "llama", *without: str, **entries: Any) -> Path:
    """A tiny model folder whose config has other entries."""
    folder = make_tiny_checkpoint(tmp_path / "model", model_type=kind)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config = {name: value for name, value in (config | entries).items() if name not in without}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_the_names_of_transformers_5_are_read(tmp_path: Path, kind: str) -> None:
    """mindformers reads the older ones, and takes its defaults for what it does not find.

    Mutant seen to fail: `rope_parameters` left as they are: the base is 10000 for every model.
    """
    ropes = {"rope_theta": 500000.0, "rope_type": "default"}
    folder = changed(tmp_path, kind, "rope_theta", "torch_dtype", rope_parameters=ropes, dtype="float32")
    config = read_config(folder, 64)
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] is None
    assert config["torch_dtype"] == "float32"
    assert not {"rope_parameters", "dtype"} & set(config)


def test_the_rope_of_llama_3_is_handed_on(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    with pytest.raises(ModelRejected, match="rope scaling 'llama3' without original_max_position_embeddings"):
        read_config(changed(tmp_path, rope_scaling=scaling), 64)
    scaling["original_max_position_embeddings"] = 32
    folder = changed(tmp_path, rope_parameters={"rope_theta": 1e4, **scaling})
    assert read_config(folder, 64)["rope_scaling"].items() >= scaling.items()
    with pytest.raises(ModelRejected, match="rope scaling 'llama3'"):
        read_config(changed(tmp_path, "qwen3", rope_scaling=scaling), 64)


@pytest.mark.parametrize(("kind", "biased"), [("qwen2", True), ("qwen3", False)])
def test_the_biases_of_qwen2_are_asked_for(tmp_path: Path, kind: str, biased: bool) -> None:
    """Every Qwen2 has them; mindformers leaves them out unless told. Mutant seen to fail: it is not told."""
    assert bool(read_config(changed(tmp_path, kind, "attention_bias"), 64).get("attention_bias")) is biased


def test_a_llama_of_several_ranks_is_a_qwen2_without_biases(tmp_path: Path) -> None:
    """Mutants seen to fail: biases are left to Qwen2's default; heads that share nothing are left to it, too."""
    config = packed(read_config(changed(tmp_path, "llama", "num_key_value_heads", "attention_bias"), 64))
    assert (config["model_type"], config["architectures"]) == ("qwen2", ["Qwen2ForCausalLM"])
    assert config["attention_bias"] is False
    assert config["num_key_value_heads"] == config["num_attention_heads"] == 4
    assert packed(read_config(changed(tmp_path, "qwen3"), 64))["model_type"] == "qwen3"


@pytest.mark.parametrize(
    ("kind", "entries", "said"),
    [
        ("llama", {"model_type": "mistral"}, "'mistral' is not served on Ascend; these are: llama, qwen2, qwen3"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling 'linear'"),
        ("llama", {"attention_bias": True, "mlp_bias": True}, "attention_bias=true, mlp_bias=true"),
        ("llama", {"head_dim": 16}, "head_dim=16 beside hidden_size / num_attention_heads = 8"),
        ("llama", {"hidden_act": "gelu"}, "the activation 'gelu'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32}, "a sliding window of 32 tokens"),
        ("qwen3", {"quantization_config": {"bits": 4}}, "quantised weights"),
    ],
)
def test_what_would_be_answered_wrongly_is_refused(
    tmp_path: Path, kind: str, entries: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelRejected, match=said):
        read_config(changed(tmp_path, kind, **entries), 64)


def test_a_window_that_covers_a_row_is_none(tmp_path: Path) -> None:
    assert read_config(changed(tmp_path, "qwen2", use_sliding_window=True, sliding_window=64), 64)


def test_rows_longer_than_the_model_reads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanRejected, match="max_len=513 is longer than the 512 positions"):
        read_config(changed(tmp_path), 513)


def test_folders_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"config.json of .* cannot be used"):
        read_config(tmp_path, 64)
    folder = changed(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "llama2_7b.ckpt").touch()
    with pytest.raises(ModelRejected, match=r"MindSpore .ckpt files; give the Hugging Face folder"):
        read_config(folder, 64)
