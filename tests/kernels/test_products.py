"""8-bit products: close to the exact ones, the same whatever shares the call, the same on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("langchain_accel_kernels", reason="pip install ./kernels")

import langchain_accel_kernels as kernels

SETS = ("avx2", "avx512vnni")[: 2 if kernels.instructions() == "avx512vnni" else 1]
Floats = NDArray[np.float32]


@pytest.fixture(params=SETS)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LANGCHAIN_ACCEL_INSTRUCTIONS", request.param)
    assert kernels.instructions() == request.param
    return request.param


def drawn(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SIZES = {
    "inputs": st.integers(1, 24).map(lambda sixteens: 16 * sixteens),  # a single outlier stands out from 272 on
    "outputs": st.integers(1, 90),
    "tokens": st.integers(1, 40),
    "seed": st.integers(0, 2**16),
}


class TestEverySet:
    """On each instruction set that this processor has."""

    @pytest.mark.usefixtures("instructions")
    def test_no_number_is_further_off_than_rounding_makes_it(self) -> None:
        """Mutants seen to fail: one scale for all outputs; the bias added to the rest of an outlier as well."""

        @settings(max_examples=40, deadline=None)
        @given(**SIZES, bias=st.booleans(), outliers=st.booleans())
        def check(inputs: int, outputs: int, tokens: int, seed: int, bias: bool, outliers: bool) -> None:
            weight = drawn(seed, outputs, inputs) * np.logspace(-2, 2, outputs, dtype=np.float32)[:, None]
            given_tokens, added = drawn(seed + 1, tokens, inputs), 100 * drawn(seed + 2, outputs) if bias else None
            if outliers:
                given_tokens[::2, 3] *= 300
            exact = given_tokens.astype(np.float64) @ weight.T + (0 if added is None else added)
            found = kernels.linear(kernels.pack(weight, added), given_tokens)
            half_weight, half_token = (np.abs(a).max(-1, keepdims=True) / 254 for a in (weight, given_tokens))
            root = np.sqrt((given_tokens**2).mean(-1, keepdims=True))
            half_token = np.where(254 * half_token > 16.1 * root, half_token / 127, half_token)
            rounding = np.abs(given_tokens).sum(-1, keepdims=True) * half_weight[:, 0]
            rounding = rounding + half_token * np.abs(weight).sum(-1) + inputs * half_token * half_weight[:, 0]
            assert (np.abs(found - exact) <= rounding + 1e-5 * np.abs(exact) + 1e-5).all()

        check()

    @pytest.mark.usefixtures("instructions")
    def test_a_token_is_computed_alike_alone_and_in_company(self) -> None:
        """Bit for bit, outliers among them. Mutant seen to fail: a token's rest added to its neighbour."""

        @settings(max_examples=40, deadline=None)
        @given(**SIZES)
        def check(inputs: int, outputs: int, tokens: int, seed: int) -> None:
            layer = kernels.pack(drawn(seed, outputs, inputs))
            together = drawn(seed + 1, tokens, inputs)
            together[::3, 5] = 300.0
            company = kernels.linear(layer, together)
            alone = np.concatenate([kernels.linear(layer, together[place : place + 1]) for place in range(tokens)])
            assert (alone == company).all()

        check()

    @pytest.mark.usefixtures("instructions")
    def test_an_outlier_does_not_drown_the_other_numbers(self) -> None:
        """Mutant seen to fail: no second pass."""
        weight, tokens = drawn(0, 64, 512), drawn(1, 4, 512)
        weight[:, 7] = 0  # the outlier's own product, which may be off by more, is nothing
        tokens[1:3, 7] = 500.0
        exact = tokens.astype(np.float64) @ weight.T
        found = kernels.linear(kernels.pack(weight), tokens)
        assert np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)

    @pytest.mark.usefixtures("instructions")
    def test_what_is_no_number_does_not_become_one(self) -> None:
        """Mutant seen to fail: the scale of such a token left as it is."""
        layer = kernels.pack(drawn(0, 33, 64))
        for bad in (np.inf, -np.inf, np.nan):
            tokens = drawn(1, 3, 64)
            tokens[1, 3] = bad
            output = kernels.linear(layer, tokens)
            assert np.isfinite(output[[0, 2]]).all()
            assert not np.isfinite(output[1]).any()


@pytest.mark.skipif(len(SETS) < 2, reason="this processor has one instruction set of the two")
@settings(max_examples=40, deadline=None)
@given(**SIZES)
def test_instruction_sets_agree(inputs: int, outputs: int, tokens: int, seed: int) -> None:
    """Sums of levels are exact. Mutant seen to fail: AVX2's pairs of products past 16 bits (levels of 128)."""
    layer, given_tokens = kernels.pack(drawn(seed, outputs, inputs)), drawn(seed + 1, tokens, inputs)
    found = []
    for name in SETS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LANGCHAIN_ACCEL_INSTRUCTIONS", name)
            found.append(kernels.linear(layer, given_tokens))
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-6)


def test_bfloat16_weights_are_read_as_such() -> None:
    weight = drawn(0, 40, 48)
    upper = (weight.view(np.uint32) >> 16).astype(np.uint16)
    rounded = (upper.astype(np.uint32) << 16).view(np.float32)
    ours, theirs = kernels.pack(upper), kernels.pack(rounded)
    assert (ours.weight == theirs.weight).all()
    assert (ours.scales == theirs.scales).all()


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = kernels.pack(drawn(0, 8, 32))
    with pytest.raises(ValueError, match="width 48 for a layer of 32 inputs"):
        kernels.linear(layer, drawn(0, 2, 48))
    with pytest.raises(TypeError, match="float32, or bfloat16 as uint16, got float64"):
        kernels.pack(np.zeros((4, 16)))
    monkeypatch.setenv("LANGCHAIN_ACCEL_INSTRUCTIONS", "sse9")
    assert kernels.instructions() is None
    with pytest.raises(RuntimeError, match="no instructions sse9"):
        kernels.linear(layer, drawn(0, 2, 32))
