"""The arithmetic of a plan, on the numbers of models that people run; no Neuron package is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from langchain_accel.devices.inferentia.plan import (
    INSTANCES,
    Instance,
    Layout,
    Numbers,
    check,
    check_cores,
    cost,
    padded_heads,
)
from langchain_accel.errors import PlanRejected

GIB = 2**30
LLAMA_3_8B = Numbers(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, vocab=128256)
LLAMA_2_13B = Numbers(layers=40, hidden=5120, intermediate=13824, heads=40, kv_heads=40, head_dim=128, vocab=32000)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "cores", "expected"),
    [
        (32, 8, 8, (32, 8)),
        (32, 8, 4, (32, 8)),
        (32, 8, 24, (48, 24)),  # every KV head on three cores
        (40, 40, 24, (48, 48)),  # multi-head attention: KV heads are padded with the others
        (8, 1, 6, (12, 6)),
        (8, 4, 3, None),
        (8, 4, 6, None),
        (6, 2, 3, None),
        (28, 4, 6, None),
    ],
)
def test_heads_are_padded_copied_or_cannot_be_split(
    heads: int, kv_heads: int, cores: int, expected: tuple[int, int] | None
) -> None:
    """The three that cannot load are those on which the real library was seen to fail.

    Mutant: a number of cores that KV heads do not divide is padded.
    """
    numbers = replace(LLAMA_3_8B, heads=heads, kv_heads=kv_heads)
    assert padded_heads(numbers, cores) == expected


def test_numbers_of_a_config_fill_in_what_it_leaves_out() -> None:
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_attention_heads": 6,
        "vocab_size": 384,
        "head_dim": None,
    }
    assert Numbers.of(config) == Numbers(2, 48, 64, 6, 6, 8, 384)
    assert Numbers.of({**config, "num_key_value_heads": 2, "head_dim": 16}) == Numbers(2, 48, 64, 6, 2, 16, 384)


def test_llama_3_8b_on_two_cores_takes_what_was_reckoned_by_hand() -> None:
    """bfloat16, 4 rows of 4096: 8.0 GB of weights and 1.07 GB of KV cache on each of two cores."""
    found = cost(LLAMA_3_8B, Layout(rows=4, max_len=4096, cores=2, item_bytes=2))
    assert found.cache == 2 * 32 * 4 * 4 * 4096 * 128 * 2
    assert found.weights == pytest.approx(8.03e9, rel=0.01)


def test_copied_kv_heads_cost_memory_on_every_core() -> None:
    """Sixteen cores for eight KV heads: each core holds one, so the cache of a core does not shrink any more.

    Mutant: the KV heads of the checkpoint are divided by the cores.
    """
    eight, sixteen = (cost(LLAMA_3_8B, Layout(4, 4096, cores, 2)).cache for cores in (8, 16))
    assert eight == sixteen


def test_the_tutorials_chatbot_fits_where_it_ran() -> None:
    """Llama-2-13b on the 24 cores of an inf2.48xlarge, one row of 2048: 40 heads padded to 48."""
    found = check(LLAMA_2_13B, Layout(1, 2048, 24, 2), INSTANCES["inf2.48xlarge"], 0.7)
    assert found.total < 2 * GIB


def test_a_plan_that_is_too_large_names_the_numbers_and_what_fits() -> None:
    """Mutant: rows are divided by columns instead of the other way round."""
    instance = INSTANCES["inf2.24xlarge"]
    with pytest.raises(PlanRejected) as refused:
        check(LLAMA_3_8B, Layout(32, 4096, 2, 2), instance, 0.7)
    message = str(refused.value)
    assert "needs 15.48 GiB on each of 2 NeuronCores (weights 7.48, KV cache of 32 rows x 4096 columns 8.00)" in message
    assert "may take 11.20 of a core's 16 GiB (core_share=0.7)" in message
    assert "set tensor_parallel_size=4, or rows <= 14, or max_len <= 1905" in message
    check(LLAMA_3_8B, Layout(32, 4096, 4, 2), instance, 0.7)
    check(LLAMA_3_8B, Layout(14, 4096, 2, 2), instance, 0.7)
    check(LLAMA_3_8B, Layout(32, 1905, 2, 2), instance, 0.7)
    for larger in (Layout(15, 4096, 2, 2), Layout(32, 1906, 2, 2)):
        with pytest.raises(PlanRejected):
            check(LLAMA_3_8B, larger, instance, 0.7)


def test_a_model_too_large_for_the_instance_says_so() -> None:
    with pytest.raises(PlanRejected, match="take a smaller model or a larger instance"):
        check(LLAMA_2_13B, Layout(1, 128, 1, 4), INSTANCES["inf2.xlarge"], 0.7)


def test_cores_that_cannot_load_the_model_name_the_nearest_that_can() -> None:
    """Mutant: the search for a number above stops at the cores asked for."""
    with pytest.raises(PlanRejected, match=r"6 cannot split 8 KV heads.*one of 2, 4, 8$"):
        check(LLAMA_3_8B, Layout(1, 128, 6, 2), INSTANCES["inf2.24xlarge"], 0.7)


def test_more_cores_than_there_are_is_refused() -> None:
    with pytest.raises(PlanRejected, match="asks for 24 NeuronCores and there are 12"):
        check_cores(24, INSTANCES["inf2.24xlarge"])
    check_cores(12, INSTANCES["inf2.24xlarge"])


def test_every_instance_type_has_its_cores_and_memory() -> None:
    assert {name: (instance.cores, instance.core_bytes // GIB) for name, instance in INSTANCES.items()} == {
        "inf2.xlarge": (2, 16),
        "inf2.8xlarge": (2, 16),
        "inf2.24xlarge": (12, 16),
        "inf2.48xlarge": (24, 16),
        "trn1.2xlarge": (2, 16),
        "trn1.32xlarge": (32, 16),
        "trn1n.32xlarge": (32, 16),
        "trn2.3xlarge": (4, 24),
        "trn2.48xlarge": (64, 24),
    }
    assert all(isinstance(instance, Instance) for instance in INSTANCES.values())
