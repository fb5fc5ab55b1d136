"""Who shards what, and what is refused before a process starts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from transformers import AutoConfig

from langchain_accel.devices import xeon
from langchain_accel.devices.torch_rows.sharding.strategy import Sharder, choose, refuse_uneven
from langchain_accel.errors import DeviceUnavailable, ModelRejected, PlanRejected
from tests.sharding.helpers import plan
from tests.tiny_models import ARCHITECTURES, make


def config(architecture: str, **entries: object) -> dict[str, object]:
    kind, given = ARCHITECTURES[architecture]
    made: dict[str, object] = AutoConfig.for_model(kind, **{**given, **entries}).to_dict()
    return made


@pytest.mark.parametrize(
    ("architecture", "sharder"),
    [
        ("llama", Sharder.DEEPSPEED),
        ("qwen3", Sharder.DEEPSPEED),
        ("bloom", Sharder.DEEPSPEED),
        ("falcon-new", Sharder.DEEPSPEED),
        ("falcon-old", Sharder.OWN),
        ("falcon-alibi", Sharder.OWN),
        ("phi3", Sharder.OWN),
        ("gpt2", Sharder.OWN),
        ("mixtral", Sharder.TRANSFORMERS),
        ("qwen3-moe", Sharder.TRANSFORMERS),
    ],
)
def test_each_architecture_has_its_sharder(architecture: str, sharder: Sharder) -> None:
    chosen = choose(config(architecture), 2, deepspeed=True, transformers_major=5)
    assert chosen.sharder is sharder
    assert not chosen.note


def test_without_deepspeed() -> None:
    """The plan of transformers steps in, and says so; where there is none, the message installs DeepSpeed."""
    chosen = choose(config("llama"), 2, deepspeed=False, transformers_major=5)
    assert chosen.sharder is Sharder.TRANSFORMERS
    assert "DeepSpeed is not installed" in chosen.note
    with pytest.raises(DeviceUnavailable, match=r'pip install "langchain-accel\[xeon-sharding\]"'):
        choose(config("bloom"), 2, deepspeed=False, transformers_major=5)
    with pytest.raises(DeviceUnavailable, match="needs transformers 5, and 4"):
        choose(config("mixtral"), 2, deepspeed=True, transformers_major=4)


def test_an_architecture_that_nobody_shards_is_named() -> None:
    with pytest.raises(ModelRejected, match=r"'deepseek_v3' cannot be sharded .*llama.*tensor_parallel_size=1"):
        choose(config("deepseek-v3", num_attention_heads=6), 2, deepspeed=True, transformers_major=5)


@pytest.mark.parametrize(
    ("architecture", "ranks", "words"),
    [
        ("llama", 4, r"tensor_parallel_size=4 .*6 attention heads, 2 key/value heads.*set it to 1 or 2"),
        ("llama", 3, r"2 key/value heads.*64 intermediate size"),
        ("falcon-new", 6, r"2 key/value heads; set it to 1 or 2"),
        ("falcon-old", 4, r"6 attention heads; set it to 1 or 2 or 3"),
        ("gpt2", 3, r"4 attention heads"),
    ],
)
def test_uneven_numbers_are_refused(architecture: str, ranks: int, words: str) -> None:
    with pytest.raises(PlanRejected, match=words):
        refuse_uneven(config(architecture), ranks)


def test_one_key_head_for_all_stays_whole() -> None:
    """Falcon 7B's one key/value head is no reason to refuse, its 71 query heads are. Mutant: asked of all."""
    refuse_uneven(config("falcon-old"), 3)
    with pytest.raises(PlanRejected, match="71 attention heads"):
        refuse_uneven(config("falcon-old", num_attention_heads=71, hidden_size=4544), 2)


def test_refused_before_a_process_starts(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "llama")
    asked = plan(folder, 4)
    with pytest.raises(PlanRejected, match="6 attention heads"):
        xeon.placement(asked, asked.options)
    two = plan(folder, 2)
    assert xeon.placement(two, two.options).ranks == 2
    assert xeon.placement(plan(folder, 1), two.options).ranks == 1
