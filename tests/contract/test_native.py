"""The laws of the row step on the whole-step kernels, with transformers as the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("langchain_accel_kernels", reason="pip install ./kernels")
pytest.importorskip("torch")

from langchain_accel.devices import xeon
from langchain_accel.devices.base import Device, Plan
from langchain_accel.devices.native.device import NativeDevice
from tests.contract.test_xeon import XeonContract
from tests.kernels.holding import hold_what_kernels_hold, make_wide


class NativeContract(XeonContract):
    """Weights as the checkpoint has them."""

    weights = "exact"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _hold(cls, _models: None) -> None:
        hold_what_kernels_hold(cls.plain, cls.shared)

    @classmethod
    def make(cls, folder: Path) -> Path:
        return make_wide(cls.architecture, folder)

    def load(self) -> Device:
        plan = Plan("xeon", str(self.folder), rows=4, max_len=64, dtype="float32")
        device = xeon.load(plan, xeon.Options(weights=self.weights, threads=2, prefill_chunk=32))
        assert isinstance(device, NativeDevice)
        return device


class TestExactLlama(NativeContract):
    """Where nothing is rounded, tokens neither."""

    architecture = "llama"


class TestExactGemma(NativeContract):
    """Norms with an offset, and embedded tokens times a root."""

    architecture = "gemma"


class TestExactGptNeox(NativeContract):
    """Norms that take the mean away, both halves of a layer side by side, no gate, a part of each head rotated."""

    architecture = "gpt-neox"


class TestExactFalconAlibi(NativeContract):
    """Biases for positions, rounded as Falcon rounds them, one half of a layer after the other."""

    architecture = "falcon-alibi"


class TestExactGemma3(NativeContract):
    """Norms of what is added, layers with rotary positions and windows of their own."""

    architecture = "gemma3"


class Int8Contract(NativeContract):
    """8-bit weights. Numbers that lie between two levels may be rounded either way, hence the tolerance."""

    weights = "int8"
    tolerance = 0.5


class TestLlama(Int8Contract):
    """Grouped-query attention."""

    architecture = "llama"


class TestMistral(Int8Contract):
    """A sliding window of a few columns."""

    architecture = "mistral"


class TestQwen3(Int8Contract):
    """Norms of heads."""

    architecture = "qwen3"


class TestGranite(Int8Contract):
    """Factors on everything."""

    architecture = "granite"


class TestFalcon(Int8Contract):
    """Queries, keys and values of each key/value head in one product, and one norm per half."""

    architecture = "falcon-new"


class TestBloom(Int8Contract):
    """ALiBi for heads of no power of two, and a norm of embedded tokens."""

    architecture = "bloom-6-heads"


class TestGemma2(Int8Contract):
    """Caps on scores and logits."""

    architecture = "gemma2"


class TestInt4(NativeContract):
    """4-bit weights."""

    architecture = "llama"
    weights = "int4"
    tolerance = 0.3
