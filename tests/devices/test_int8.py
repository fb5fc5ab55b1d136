"""Weights in 8-bit integers, by torch: close to the exact ones, outliers too, and the same whatever shares a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from langchain_accel.devices import xeon
from langchain_accel.devices.base import Plan
from langchain_accel.devices.processors import cpu_flags
from langchain_accel.devices.torch_rows import quantised
from langchain_accel.devices.torch_rows.quantised import Int8Linear
from langchain_accel.errors import DeviceUnavailable, ModelRejected, PlanRejected
from tests.tiny_models import ARCHITECTURES, VOCABULARY, make

needs_vnni = pytest.mark.skipif(not quantised._INSTRUCTIONS.intersection(cpu_flags()), reason="no 8-bit instructions")
INT8 = xeon.Options(weights="int8", kernels=False, threads=1, prefill_chunk=32)
DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "falcon-alibi", "bloom", "gpt-neox", "gpt2", "opt")


def linear(inputs: int, outputs: int, seed: int, *, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(inputs, outputs, bias=bias)


@needs_vnni
@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(8, 200), outputs=st.integers(1, 90), tokens=st.integers(1, 40), seed=st.integers(0, 2**16),
    bias=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_a_layer_is_close_to_the_exact_one(
    inputs: int, outputs: int, tokens: int, seed: int, bias: bool, dtype: torch.dtype
) -> None:
    """No number is further off than rounding both factors can make it.

    Mutants seen to fail: one scale for all rows of the weight; a bias added twice.
    """
    exact = linear(inputs, outputs, seed, bias=bias)
    exact.weight.data *= torch.logspace(-2, 2, outputs)[:, None]
    tokens_in = torch.randn(1, tokens, inputs).to(dtype)
    wanted = exact(tokens_in.float())
    found = Int8Linear(exact)(tokens_in)
    assert found.dtype is dtype
    assert found.shape == wanted.shape
    weight, token = exact.weight.abs(), tokens_in.float().abs()
    half_weight, half_token = (size.amax(-1, keepdim=True) / 127 / 2 for size in (weight, token))
    rounding = token.sum(-1, keepdim=True) * half_weight[:, 0] + half_token * weight.sum(-1)
    rounding += inputs * half_token * half_weight[:, 0]
    assert ((found.float() - wanted).abs() <= rounding + wanted.abs() * 2**-8 + 1e-6).all()


@needs_vnni
@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(2, 40), seed=st.integers(0, 2**16), outliers=st.booleans())
def test_a_token_is_computed_alike_alone_and_in_company(tokens: int, seed: int, outliers: bool) -> None:
    """Bit for bit. Mutant seen to fail: one scale for all tokens of a step."""
    layer = Int8Linear(linear(320, 64, seed))
    together = torch.randn(tokens, 320)
    if outliers:
        together[::3, 5] = 300.0
    company = layer(together)
    assert all(torch.equal(layer(together[place : place + 1])[0], company[place]) for place in range(tokens))


@needs_vnni
def test_an_outlier_does_not_drown_the_other_numbers() -> None:
    """Mutant seen to fail: no second pass."""
    exact = linear(512, 64, 3, bias=False)
    tokens = torch.randn(4, 512)
    tokens[1:3, 7] = 500.0
    without = tokens.clone()
    without[:, 7] = 0
    drowned = tokens - without
    found = Int8Linear(exact)(tokens) - exact(drowned)
    scale = exact.weight[:, 7].abs().max() * 500 / 127  # what rounding the outlier's own product may be off by
    assert ((found - exact(without)).abs().max(1).values <= 0.05 * exact(without).abs().max() + scale).all()
    assert (found - exact(without)).norm() < 0.6 * exact(without).norm()


@needs_vnni
def test_what_is_no_number_does_not_become_one() -> None:
    layer = Int8Linear(linear(32, 8, 0))
    for bad in (torch.inf, torch.nan):
        tokens = torch.randn(2, 32)
        tokens[1, 3] = bad
        output = layer(tokens)
        assert torch.isfinite(output[0]).all()
        assert not torch.isfinite(output[1]).any()


@needs_vnni
@pytest.mark.parametrize("name", [name for name in DENSE if ARCHITECTURES[name][0] in CONFIG_MAPPING])
def test_a_model_stays_close_to_itself(name: str, tmp_path: Path) -> None:
    folder = make(name, tmp_path)
    prompt = np.random.default_rng(1).integers(5, VOCABULARY, 20)
    with torch.inference_mode():
        wanted = AutoModelForCausalLM.from_pretrained(folder)(torch.from_numpy(prompt)[None]).logits[0, -1].numpy()
    device = xeon.load(Plan("xeon", str(folder), rows=2, max_len=32, dtype="float32"), INT8)
    tokens, one = prompt[None], np.array([1])
    found = device.prefill(tokens, np.array([20]), np.array([0]), one)[0].copy()
    pieces = [device.prefill(tokens[:, a:b], np.array([b - a]), np.array([a]), one)[0] for a, b in ((0, 9), (9, 20))]
    np.testing.assert_allclose(pieces[-1], found, atol=0.02 * np.abs(found).max())
    device.close()
    centred, wanted = found - found.mean(), wanted - wanted.mean()
    assert np.linalg.norm(centred - wanted) <= 0.12 * np.linalg.norm(wanted)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(PlanRejected, match="'exact', 'int8' or 'int4', got 'int3'"):
        xeon.Options(weights="int3")


def test_several_ranks_are_refused(tmp_path: Path) -> None:
    plan = Plan("xeon", str(make("llama", tmp_path)), rows=1, max_len=32, tensor_parallel_size=2)
    with pytest.raises(PlanRejected, match="one rank, and the plan asks for 2"):
        xeon.placement(plan, INT8)


def test_a_processor_without_the_instructions_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match=r"avx512_vnni.* none of them"):
        quantised.check_processor({"avx2", "fma"})


@needs_vnni
def test_a_model_whose_matrices_are_no_linear_layers_is_refused(tmp_path: Path) -> None:
    plan = Plan("xeon", str(make("mixtral", tmp_path)), rows=1, max_len=32, dtype="float32")
    with pytest.raises(ModelRejected, match="outside of linear layers"):
        xeon.load(plan, INT8)
