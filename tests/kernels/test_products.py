"""Products: as exact as their weights, the same whatever shares the call, the same on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("langchain_accel_kernels", reason="pip install ./kernels")

import langchain_accel_kernels as kernels

from tests.kernels.holding import SETS, have

HERE = [name for name in SETS if have(name)]
Floats = NDArray[np.float32]


@pytest.fixture(params=HERE)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LANGCHAIN_ACCEL_INSTRUCTIONS", request.param)
    assert kernels.instructions() == request.param
    return request.param


def drawn(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def upper_halves(numbers: Floats) -> NDArray[np.uint16]:
    """Return float32 numbers cut to bfloat16."""
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def whole(halves: NDArray[np.uint16]) -> Floats:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def rounded(numbers: Floats) -> Floats:
    """Return float32 numbers rounded to bfloat16, to nearest even."""
    words = numbers.view(np.uint32)
    return whole(((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype(np.uint16))


def packed(dtype: str, weight: Floats, bias: Floats | None = None) -> kernels.PackedLinear:
    if dtype in ("int8", "int4"):
        return kernels.pack(weight, bias, dtype=dtype)
    if dtype == "bfloat16_pairs":
        return kernels.pack(upper_halves(weight), bias, dtype=dtype)
    return kernels.pack(upper_halves(weight) if dtype == "bfloat16" else weight, bias)


def unpacked(layer: kernels.PackedLinear) -> Floats:
    """Return a layer's weight: its product with one input at a time, whose levels are exact."""
    return kernels.linear(layer, np.eye(layer.inputs, dtype=np.float32)).T


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
            found = kernels.linear(kernels.pack(weight, added, dtype="int8"), given_tokens)
            half_weight, half_token = (np.abs(a).max(-1, keepdims=True) / 254 for a in (weight, given_tokens))
            root = np.sqrt((given_tokens**2).mean(-1, keepdims=True))
            half_token = np.where(254 * half_token > 16.1 * root, half_token / 127, half_token)
            rounding = np.abs(given_tokens).sum(-1, keepdims=True) * half_weight[:, 0]
            rounding = rounding + half_token * np.abs(weight).sum(-1) + inputs * half_token * half_weight[:, 0]
            assert (np.abs(found - exact) <= rounding + 1e-5 * np.abs(exact) + 1e-5).all()

        check()

    @pytest.mark.usefixtures("instructions")
    @pytest.mark.parametrize("dtype", kernels.PACKED)
    def test_a_token_is_computed_alike_alone_and_in_company(self, dtype: str) -> None:
        """Bit for bit, outliers among them.

        Mutants seen to fail: a token's rest added to its neighbour; factors of a group too low by one where a panel
        becomes 8-bit; the second of a block's groups read with the factors of the first where few tokens come.
        """

        @settings(max_examples=40, deadline=None)
        @given(**SIZES)
        def check(inputs: int, outputs: int, tokens: int, seed: int) -> None:
            layer = packed(dtype, drawn(seed, outputs, inputs))
            together = drawn(seed + 1, tokens, inputs)
            together[::3, 5] = 300.0
            company = kernels.linear(layer, together)
            alone = np.concatenate([kernels.linear(layer, together[place : place + 1]) for place in range(tokens)])
            assert (alone == company).all()

        check()

    @pytest.mark.usefixtures("instructions")
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bfloat16_pairs"])
    def test_weights_that_are_not_rounded_lose_nothing(self, dtype: str) -> None:
        """Beside pairs, tokens are rounded to bfloat16, to the nearest.

        Mutants seen to fail: the bias of a neighbour; the last output of a cut vector left out; the two of a pair
        exchanged; tokens cut to bfloat16.
        """

        @settings(max_examples=40, deadline=None)
        @given(**SIZES)
        def check(inputs: int, outputs: int, tokens: int, seed: int) -> None:
            weight, bias, given_tokens = (
                drawn(seed, outputs, inputs),
                drawn(seed + 2, outputs),
                drawn(seed, tokens, inputs),
            )
            held = weight if dtype == "float32" else whole(upper_halves(weight))
            given_tokens_held = rounded(given_tokens) if dtype == "bfloat16_pairs" else given_tokens
            exact = given_tokens_held.astype(np.float64) @ held.T + bias
            bound = 4e-6 * (np.abs(given_tokens) @ np.abs(held).T + 1)  # roundings of up to 384 sums
            assert (np.abs(kernels.linear(packed(dtype, weight, bias), given_tokens) - exact) <= bound).all()

        check()

    @pytest.mark.usefixtures("instructions")
    def test_4_bit_products_are_those_of_the_weights_that_4_bits_hold(self) -> None:
        """Every weight is a level of -8 to 7 times a factor, the same for 16 inputs, times a scale.

        Mutant seen to fail: the upper half of a byte taken for the lower.
        """

        @settings(max_examples=40, deadline=None)
        @given(**SIZES, bias=st.booleans())
        def check(inputs: int, outputs: int, tokens: int, seed: int, bias: bool) -> None:
            weight, added = drawn(seed, outputs, inputs), drawn(seed + 2, outputs) if bias else None
            layer = kernels.pack(weight, added, dtype="int4")
            held = unpacked(kernels.PackedLinear(layer.weight, layer.scales, None, inputs, outputs, "int4"))
            levels = held / np.maximum(layer.scales[:outputs, None], 1e-30)
            np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
            for group in np.split(np.rint(levels), inputs // 16, axis=1):
                factors = np.arange(1, 16)[:, None, None]
                fits = (group % factors == 0) & (group / factors <= 8) & (group / factors >= -8)
                assert fits.all(-1).any(0).all()
            given_tokens = drawn(seed + 1, tokens, inputs)
            exact = given_tokens.astype(np.float64) @ held.T + (0 if added is None else added)
            off = np.abs(given_tokens).max(-1, keepdims=True) / 254 * np.abs(held).sum(-1) + 1e-4
            assert (np.abs(kernels.linear(layer, given_tokens) - exact) <= off + 1e-5 * np.abs(exact)).all()

        check()

    @pytest.mark.usefixtures("instructions")
    def test_4_bits_lose_less_than_rounding_to_the_nearest(self) -> None:
        """That of the same size: 32 inputs share a 16-bit scale. Mutant seen to fail: no factor but the nearest."""
        random = np.random.default_rng(0)
        for weight in (random.standard_normal((64, 512)), random.standard_t(4, (64, 512))):
            groups = weight.reshape(64, 16, 32)
            steps = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1) / -8
            nearest = (np.clip(np.rint(groups / steps), -8, 7) * steps).reshape(64, 512)
            layer = kernels.pack(weight.astype(np.float32), dtype="int4")
            lost = np.square(unpacked(layer) - weight).sum()
            assert lost < 0.74 * np.square(nearest - weight).sum()

    @pytest.mark.usefixtures("instructions")
    def test_what_is_important_loses_less(self) -> None:
        """Mutant seen to fail: the importance of a neighbour."""
        weight, importance = drawn(0, 64, 256), np.ones(256, np.float32)
        importance[::2] = 100
        plain, weighed = (
            np.square(unpacked(kernels.pack(weight, dtype="int4", importance=what)) - weight)
            for what in (None, importance)
        )
        assert weighed[:, ::2].sum() < 0.8 * plain[:, ::2].sum()

    @pytest.mark.usefixtures("instructions")
    @pytest.mark.parametrize("dtype", ["int8", "int4"])
    def test_rows_of_zeros_and_tiny_numbers_are_packed(self, dtype: str) -> None:
        weight = drawn(0, 3, 64)
        weight[0], weight[1] = 0, weight[1] * 1e-20
        tokens = drawn(1, 2, 64)
        found, exact = kernels.linear(kernels.pack(weight, dtype=dtype), tokens), tokens @ weight.T
        assert (found[:, 0] == 0).all()
        assert (np.abs(found - exact) <= 0.3 * np.abs(exact).max(0)).all()

    @pytest.mark.usefixtures("instructions")
    def test_threads_share_a_product_without_a_trace(self) -> None:
        """Bit for bit, also on buffers that an earlier product filled. Mutant seen to fail: a panel left to nobody."""
        alone, several = kernels.Parts(), kernels.Parts(threads=3)
        for seed, (outputs, inputs, tokens) in enumerate([(100, 64, 7), (33, 400, 2), (8, 16, 40), (300, 32, 1)]):
            layer, given_tokens = (
                kernels.pack(drawn(seed, outputs, inputs), dtype="int8"),
                drawn(seed + 1, tokens, inputs),
            )
            given_tokens[0, 3] = 300
            assert (several.linear(layer, given_tokens) == alone.linear(layer, given_tokens)).all()
        several.close()
        several.close()
        with pytest.raises(RuntimeError, match="the parts are closed"):
            several.linear(layer, given_tokens)

    @pytest.mark.usefixtures("instructions")
    def test_an_outlier_does_not_drown_the_other_numbers(self) -> None:
        """Mutant seen to fail: no second pass."""
        weight, tokens = drawn(0, 64, 512), drawn(1, 4, 512)
        weight[:, 7] = 0  # the outlier's own product, which may be off by more, is nothing
        tokens[1:3, 7] = 500.0
        exact = tokens.astype(np.float64) @ weight.T
        found = kernels.linear(kernels.pack(weight, dtype="int8"), tokens)
        assert np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)

    @pytest.mark.usefixtures("instructions")
    def test_what_is_no_number_does_not_become_one(self) -> None:
        """Mutant seen to fail: the scale of such a token left as it is."""
        layer = kernels.pack(drawn(0, 33, 64), dtype="int8")
        for bad in (np.inf, -np.inf, np.nan):
            tokens = drawn(1, 3, 64)
            tokens[1, 3] = bad
            output = kernels.linear(layer, tokens)
            assert np.isfinite(output[[0, 2]]).all()
            assert not np.isfinite(output[1]).any()


@pytest.mark.skipif(len(HERE) < 2, reason="this processor has one instruction set of them")
@settings(max_examples=80, deadline=None)
@given(**SIZES, dtype=st.sampled_from(list(kernels.PACKED)))
def test_instruction_sets_agree(inputs: int, outputs: int, tokens: int, seed: int, dtype: str) -> None:
    """Sums of levels are exact, so that sets with registers of one width agree to the last bit.

    Mutants seen to fail: AVX2's pairs of products past 16 bits (levels of 128); of AMX, the last inputs of a layer
    without a multiple of 64 left out; two tiles of sums made with the same tile of weights.
    """
    layer, given_tokens = packed(dtype, drawn(seed, outputs, inputs)), drawn(seed + 1, tokens, inputs)
    found = {}
    for name in HERE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LANGCHAIN_ACCEL_INSTRUCTIONS", name)
            found[name] = kernels.linear(layer, given_tokens)
    narrow, *wide = found.values()
    for other in wide:
        np.testing.assert_allclose(narrow, other, rtol=1e-6, atol=1e-4)
        assert (other == wide[0]).all()


def test_bfloat16_weights_are_read_as_such() -> None:
    weight = drawn(0, 40, 48)
    ours, theirs = (
        kernels.pack(numbers, dtype="int8") for numbers in (upper_halves(weight), whole(upper_halves(weight)))
    )
    assert (ours.weight == theirs.weight).all()
    assert ours.scales is not None
    assert (ours.scales == theirs.scales).all()


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = kernels.pack(drawn(0, 8, 32), dtype="int8")
    with pytest.raises(ValueError, match="packed as 'int8', 'int4', 'bfloat16_pairs', or None for the numbers"):
        kernels.pack(drawn(0, 8, 32), dtype="int2")
    with pytest.raises(ValueError, match="pairs are of bfloat16 numbers as uint16, got float32 and 32 inputs"):
        kernels.pack(drawn(0, 8, 32), dtype="bfloat16_pairs")
    with pytest.raises(ValueError, match="an array of 32 numbers"):
        kernels.pack(drawn(0, 8, 32), dtype="int4", importance=drawn(0, 31))
    with pytest.raises(ValueError, match="width 48 for a layer of 32 inputs"):
        kernels.linear(layer, drawn(0, 2, 48))
    with pytest.raises(TypeError, match="float32, or bfloat16 as uint16, got float64"):
        kernels.pack(np.zeros((4, 16)))
    monkeypatch.setenv("LANGCHAIN_ACCEL_INSTRUCTIONS", "sse9")
    assert kernels.instructions() is None
    with pytest.raises(RuntimeError, match="no instructions sse9"):
        kernels.linear(layer, drawn(0, 2, 32))
