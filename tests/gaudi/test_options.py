"""Options mean what they say, and the words of older scripts mean today's; no Gaudi software is needed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from langchain_accel import ChatGaudi, GaudiLLM, GaudiOptions
from langchain_accel.devices.base import Plan
from langchain_accel.devices.gaudi import Options, placement, spec
from langchain_accel.devices.gaudi.options import translated
from langchain_accel.errors import PlanRejected


def mode_of(options: Options) -> str:
    """The lazy mode that the device's process starts with."""
    return dict(placement(Plan("gaudi", "somewhere"), options).environment)["PT_HPU_LAZY_MODE"]


@pytest.mark.parametrize(
    ("options", "lazy"),
    [
        (Options(), "1"),
        (Options(mode="eager"), "0"),
        (Options(mode="compile"), "0"),
        (Options(stack="transformers"), "0"),
        (Options(stack="transformers", mode="lazy"), "1"),
    ],
)
def test_the_lazy_mode_is_always_said(options: Options, lazy: str) -> None:
    """Vendor and transformers disagree about what it is where nobody says."""
    assert mode_of(options) == lazy


def test_the_model_never_runs_in_this_process() -> None:
    """Mutant: `isolated` only with an interpreter of its own."""
    where = placement(Plan("gaudi", "somewhere"), Options(python="bin/python"))
    assert (where.isolated, where.python, where.ranks) == (True, "bin/python", 1)
    assert placement(Plan("gaudi", "somewhere"), Options()).isolated


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_words_of_older_scripts() -> None:
    assert mode_of(Options(use_hpu_graphs=True)) == "1"
    assert mode_of(Options(use_hpu_graphs=False)) == "0"
    assert translated(Plan("gaudi", "x"), Options(bf16=True, use_kv_cache=True))[0].dtype == "bfloat16"
    plan, options = translated(Plan("gaudi", "x"), Options(use_hpu_graphs=False, bf16=False))
    assert (plan.dtype, options) == ("float32", Options(mode="eager"))


def test_each_older_word_is_noted_with_todays() -> None:
    with pytest.warns(FutureWarning) as noted:
        GaudiOptions(use_hpu_graphs=True, use_kv_cache=True, bf16=True)
    notes = [str(note.message) for note in noted]
    for today in ("write mode='lazy'", "leave it out", "dtype='bfloat16'"):
        assert sum(today in note for note in notes) == 1
    assert all(note.filename == __file__ for note in noted), "the note must point at the user's line"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("model", [ChatGaudi, GaudiLLM])
def test_a_model_takes_over_what_they_say(model: type[ChatGaudi]) -> None:
    assert model(model="somewhere", options=GaudiOptions(bf16=True)).dtype == "bfloat16"
    with pytest.raises(ValidationError, match=r"bf16=True and dtype='float32' contradict each other; keep dtype"):
        model(model="somewhere", dtype="float32", options=GaudiOptions(bf16=True))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"mode": "graphs"}, "mode must be one of 'lazy', 'compile', 'eager'"),
        ({"stack": "vllm"}, "stack must be one of 'optimum', 'transformers'"),
        ({"bucket_size": 8}, "bucket_size must be at least 16"),
        ({"max_input_tokens": 0}, "max_input_tokens must be at least 1"),
        ({"use_kv_cache": False}, "the KV cache is always on"),
        ({"use_hpu_graphs": True, "mode": "eager"}, "use_hpu_graphs=True and mode='eager' contradict each other"),
        ({"use_hpu_graphs": False, "mode": "lazy"}, "use_hpu_graphs=False and mode='lazy' contradict each other"),
        ({"stack": "transformers", "mode": "compile"}, 'set mode="eager" or "lazy", or stack="optimum"'),
        ({"stack": "transformers", "max_input_tokens": 9}, "leave max_input_tokens out"),
        ({"stack": "transformers", "quant_config": "x"}, 'set stack="optimum"'),
    ],
)
def test_what_means_nothing_is_refused(words: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanRejected, match=reason):
        Options(**words)


def test_prefills_double_from_the_bucket_size() -> None:
    """Mutant: lengths in steps of the bucket size."""
    served = spec(Plan("gaudi", "x", max_len=1000), Options(), 384)
    assert [length for batch, length in served.prefill_shapes if batch == 1] == [128, 256, 512, 1000]
    assert served.max_prompt == 999


def test_the_longest_input_is_a_limit_of_its_own() -> None:
    """Mutant: the longest prefill is rounded up to the next bucket."""
    served = spec(Plan("gaudi", "x", max_len=1000), Options(max_input_tokens=300), 384)
    assert (served.chunk, served.max_prompt, served.max_len) == (300, 300, 1000)


@pytest.mark.parametrize(("rows", "longest"), [(1, 16), (2, 17), (8, 4096)])
def test_every_plan_has_shapes_that_a_scheduler_can_serve(rows: int, longest: int) -> None:
    assert spec(Plan("gaudi", "x", rows=rows, max_len=longest), Options(), 384).decode_shapes == (rows,)
