"""Older tutorials' words mean today's; no Neuron package is needed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from langchain_accel import ChatInferentia, InferentiaLLM, InferentiaOptions
from langchain_accel.devices.base import Placement, Plan
from langchain_accel.devices.inferentia import placement
from langchain_accel.devices.inferentia.options import translated
from langchain_accel.errors import PlanRejected


def tutorial(**more: object) -> InferentiaOptions:
    """The words of the Llama-2-13b tutorial."""
    with pytest.warns(FutureWarning, match="is an older word"):
        return InferentiaOptions(num_cores=24, auto_cast_type="fp16", batch_size=1, sequence_length=2048, **more)


def test_each_older_word_is_noted_with_todays() -> None:
    """Mutant: the note names the older word twice."""
    with pytest.warns(FutureWarning) as noted:
        InferentiaOptions(num_cores=24, auto_cast_type="fp16", batch_size=1, sequence_length=2048)
    notes = [str(note.message) for note in noted]
    for today in ("tensor_parallel_size=24", "dtype='bfloat16'", "rows=1", "max_len=2048"):
        assert sum(today in note for note in notes) == 1
    assert any("float16 is not offered" in note for note in notes)
    assert all(note.filename == __file__ for note in noted), "the note must point at the user's line"


@pytest.mark.parametrize("model", [ChatInferentia, InferentiaLLM])
def test_a_model_takes_over_what_they_say(model: type[ChatInferentia]) -> None:
    """Mutant: only the device translates them, and `max_len` keeps its default in the model's profile."""
    llm = model(model="somewhere", options=tutorial(instance="inf2.48xlarge"))
    assert (llm.tensor_parallel_size, llm.dtype, llm.rows, llm.max_len) == (24, "bfloat16", 1, 2048)
    assert llm.options == InferentiaOptions(instance="inf2.48xlarge")


def test_a_model_that_says_two_things_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"batch_size=1 and rows=4 contradict each other; keep rows"):
        ChatInferentia(model="somewhere", rows=4, options=tutorial())


def test_a_model_that_says_the_same_twice_is_fine() -> None:
    assert ChatInferentia(model="somewhere", rows=1, options=tutorial()).rows == 1


def test_a_plan_takes_them_over_as_well() -> None:
    plan, options = translated(Plan("inferentia", "somewhere", max_len=2048), tutorial())
    assert plan == Plan("inferentia", "somewhere", rows=1, max_len=2048, dtype="bfloat16", tensor_parallel_size=24)
    assert options == InferentiaOptions()
    with pytest.raises(PlanRejected, match="sequence_length=2048 and max_len=512 contradict"):
        translated(Plan("inferentia", "somewhere", max_len=512), tutorial())


def test_a_plan_without_them_stays_as_it_is() -> None:
    plan, options = Plan("inferentia", "somewhere", rows=3), InferentiaOptions()
    assert translated(plan, options) == (plan, options)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_a_share_that_means_nothing_is_refused(share: float) -> None:
    with pytest.raises(PlanRejected, match="core_share must be above 0 and at most 1"):
        InferentiaOptions(core_share=share)


def test_one_process_holds_all_cores_and_may_be_one_of_its_own() -> None:
    """Mutant: a rank per core, as on devices whose ranks are processes."""
    plan = Plan("inferentia", "somewhere", tensor_parallel_size=24)
    assert placement(plan, InferentiaOptions()) == Placement(ranks=1, isolated=False)
    elsewhere = placement(plan, InferentiaOptions(python="elsewhere/bin/python"))
    assert (elsewhere.ranks, elsewhere.isolated, elsewhere.python) == (1, True, "elsewhere/bin/python")
