"""Linear layers by the kernels in torch's steps: the numbers of torch's 8-bit layers, and who computes them where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("langchain_accel_kernels", reason="pip install ./kernels")
pytest.importorskip("torch")

import langchain_accel_kernels as kernels
import torch
from transformers import AutoModelForCausalLM

from langchain_accel.devices import xeon
from langchain_accel.devices.base import Plan, silent
from langchain_accel.devices.native import members
from langchain_accel.devices.processors import cpu_flags
from langchain_accel.devices.torch_rows import quantised, rounding
from langchain_accel.devices.torch_rows.native_linear import NativeLinear
from tests.tiny_models import make

needs_vnni = pytest.mark.skipif(not quantised._INSTRUCTIONS.intersection(cpu_flags()), reason="no 8-bit instructions")


def linear(inputs: int, outputs: int, seed: int, *, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(inputs, outputs, bias=bias)


@needs_vnni
@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(8, 200), outputs=st.integers(1, 90), tokens=st.integers(1, 40), seed=st.integers(0, 2**16),
    bias=st.booleans(), outlier=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_a_layer_is_torchs_8_bit_layer(
    inputs: int, outputs: int, tokens: int, seed: int, bias: bool, outlier: bool, dtype: torch.dtype
) -> None:
    """Of any width, but for what lies between two levels and may be rounded either way.

    Mutants seen to fail: the bias left out; the zeros that fill a weight's last register before its numbers.
    """
    exact = linear(inputs, outputs, seed, bias=bias)
    tokens_in = torch.randn(1, tokens, inputs).to(dtype)
    if outlier:
        tokens_in[0, 0, 3] = 300
    wanted = quantised.Int8Linear(exact)(tokens_in)
    found = NativeLinear(exact, kernels.Parts())(tokens_in)
    assert found.dtype is dtype
    assert found.shape == wanted.shape
    level = tokens_in.float().abs().amax(-1, keepdim=True) / 127 * exact.weight.abs().amax()
    assert ((found - wanted).abs() <= 2 * level + wanted.abs() * 2**-7 + 1e-6).all()
    assert (found - wanted).norm() <= 1e-2 * wanted.norm() + 1e-6


@pytest.mark.parametrize("given_options", [{}, {"kernels": False}])
@needs_vnni
def test_loading_says_which_way_it_is(given_options: dict[str, Any], tmp_path: Path) -> None:
    """And why it is not a faster one."""
    told: list[str] = []
    plan = Plan("xeon", str(make("phi", tmp_path)), rows=1, max_len=32, dtype="float32")
    options = xeon.Options(weights="int8", threads=1, **given_options)
    device = xeon.load(plan, options, progress=lambda stage, *_: told.append(stage))
    device.close()
    by_torch = [stage for stage in told if "by torch, which is slower than the kernels: kernels=False" in stage]
    by_kernels = [stage for stage in told if "by the kernels, in torch's steps: model type 'phi'" in stage]
    assert (len(by_torch), len(by_kernels)) == ((1, 0) if given_options else (0, 1))


@needs_vnni
def test_torch_serves_where_there_are_no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(members, "find_spec", lambda name: None)
    plan = Plan("xeon", str(make("phi", tmp_path)), rows=1, max_len=32, dtype="float32")
    device = xeon.load(plan, xeon.Options(weights="int8", threads=1), progress=lambda stage, *_: told.append(stage))
    assert any("langchain-accel-kernels is not installed" in stage for stage in told)
    assert any(isinstance(module, quantised.Int8Linear) for module in device._model.modules())  # type: ignore[attr-defined]
    device.close()


def test_torch_keeps_its_threads(tmp_path: Path) -> None:
    """One while a model is served whose products are the kernels', and as many as before once it is closed."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    plan = Plan("xeon", str(make("phi", tmp_path)), rows=1, max_len=32, dtype="float32")
    device = xeon.load(plan, xeon.Options(weights="int8", threads=2))
    assert torch.get_num_threads() == 1
    device.close()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["gpt2", "phi"])
def test_what_does_most_harm_keeps_8_bits(name: str, tmp_path: Path) -> None:
    """And the head; what nobody hears of does not. Mutant seen to fail: the head has 4 bits."""
    folder = make(name, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for part, layer in model.named_modules():
            if part.endswith(("h.0.attn.c_proj", "layers.0.attention.dense")):  # the first attention says nothing
                layer.weight.zero_()
    rounds = rounding.choose(folder, model.config.to_dict(), "int4", torch.float32, 1, silent, kernels=True)
    replace = rounds.linear(model)
    layers = {part: layer for part, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    head = next(part for part, layer in layers.items() if layer is model.get_output_embeddings())
    forms = {part: replace(layer)._layer.dtype for part, layer in layers.items()}
    assert forms.pop(head) == "int8"
    sizes = {part: layers[part].weight.numel() for part in forms}
    kept = [part for part, form in forms.items() if form == "int8"]
    assert 0 < sum(sizes[part] for part in kept) <= 1.05 * members.KEPT * sum(sizes.values())
    assert not any("0.att" in part for part in kept)
    rounds.close()
