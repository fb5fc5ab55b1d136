"""What 4 bits do to a whole model: which products keep 8, and what a short text says about their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("langchain_accel_kernels", reason="pip install ./kernels")
pytest.importorskip("torch")

import langchain_accel_kernels as kernels
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from langchain_accel import ChatXeon, XeonOptions
from langchain_accel.devices.base import Plan, silent
from langchain_accel.devices.native import calibration, loading, members, packing
from langchain_accel.errors import PlanRejected
from tests.kernels.holding import make_wide
from tests.tiny_models import VOCABULARY


@given(st.dictionaries(st.text(), st.tuples(st.floats(0, 1), st.integers(1, 1000))))
def test_what_does_most_harm_stays_in_8_bits(products: Mapping[str, tuple[float, int]]) -> None:
    """As long as there is room. Mutant seen to fail: what does least."""
    kept = packing.sensitive(products)
    room = members.KEPT * sum(size for _, size in products.values())
    assert sum(products[name][1] for name in kept) <= room
    for name, (harm, size) in products.items():
        if name not in kept and harm:
            worse = [products[other] for other in kept if products[other][0] >= harm]
            assert size > room - sum(other for _, other in worse)


def test_a_text_shows_what_inputs_carry(tmp_path: Path) -> None:
    """Mutants seen to fail: the inputs of another product; no floor."""
    folder = make_wide("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] = 10
        model.model.layers[1].mlp.up_proj.weight[5] = 0
    tokens = calibration.tokens_of(folder, VOCABULARY)
    assert len(tokens) > 100
    found = calibration.inputs(model, packing.products(model), tokens)
    assert set(found) == {name for name, _ in packing.products(model)}
    assert len(found["1.down"].squares) == len(found["1.down"].largest) == 112
    assert found["0.qkv"].squares[3] > 20 * np.median(found["0.qkv"].squares)
    assert found["0.qkv"].largest[3] == found["0.qkv"].largest.max()
    assert found["1.down"].squares.min() == found["1.down"].squares[5] > 0
    assert found["1.down"].largest[5] == 0


def test_harm_is_what_the_choice_of_tokens_hangs_on(tmp_path: Path) -> None:
    """Fewer bits do more of it, and none where nobody hears of the product.

    Mutants seen to fail: the gradients of other tokens; the product's own error instead of what hangs on it.
    """
    folder = make_wide("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    harms = {}
    seen = calibration.effects(model, packing.products(model), calibration.tokens_of(folder, VOCABULARY))
    for name, layers in packing.products(model):
        weight = torch.cat([layer.weight for layer in layers]).numpy()
        harms[name] = [
            seen[name].harm(partial(kernels.linear, kernels.pack(weight, dtype=dtype))) for dtype in ("int4", "int8")
        ]
    assert harms.pop("0.qkv") == [0, 0]
    assert harms.pop("0.out") == [0, 0]
    assert all(few > 20 * many > 0 for few, many in harms.values()), harms


def test_a_text_that_shows_nothing_changes_nothing(tmp_path: Path) -> None:
    """An embedding of zeros, as of padding."""
    model = AutoModelForCausalLM.from_pretrained(make_wide("llama", tmp_path), dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    assert "0.qkv" not in calibration.inputs(model, packing.products(model), np.arange(20))


def test_the_head_stays_in_8_bits(tmp_path: Path) -> None:
    folder = make_wide("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plan = Plan("xeon", str(folder), rows=1, max_len=32)
    packed = loading.pack(plan, model.config, "int4", 1, silent)
    forms = {
        name.rsplit(".", 1)[0]: name.rsplit(".", 1)[1] for name in packed.arrays if name.endswith(("int4", "int8"))
    }
    assert forms["head"] == "int8"
    assert list(forms.values()).count("int4") >= 7


def test_without_the_kernels_4_bits_are_refused(tmp_path: Path) -> None:
    options = XeonOptions(weights="int4", kernels=False)
    llm = ChatXeon(model=str(make_wide("llama", tmp_path)), max_len=64, options=options)
    with pytest.raises(PlanRejected, match="needs langchain-accel-kernels: kernels=False; weights='int8' is served"):
        llm.invoke("One")


def test_a_token_whose_gradients_are_no_numbers_counts_as_lost() -> None:
    """Mutant seen to fail: `np.minimum`, which hands on what is no number."""
    gradients = np.array([[np.inf, -np.inf], [0, 0]], np.float32)
    effect = calibration.Effect(np.ones((2, 3), np.float32), np.zeros((2, 2), np.float32), gradients)
    assert effect.harm(lambda _: np.ones((2, 2), np.float32)) == 1
