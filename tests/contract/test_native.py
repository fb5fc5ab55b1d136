"""The laws of the row step on the whole-step kernels, with torch's 8-bit layers as the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_accel_kernels", reason="pip install ./kernels")
pytest.importorskip("torch")

from langchain_accel.devices import xeon
from langchain_accel.devices.base import Device, Plan, silent
from langchain_accel.devices.native.device import NativeDevice
from langchain_accel.devices.processors import cpu_flags
from langchain_accel.devices.torch_rows import linears, quantised
from tests.contract.test_xeon import XeonContract
from tests.tiny_models import make

if not quantised._INSTRUCTIONS.intersection(cpu_flags()):
    pytest.skip("the oracle needs 8-bit instructions", allow_module_level=True)


class NativeContract(XeonContract):
    """8-bit weights. Numbers that lie between two levels may be rounded either way, hence the tolerance."""

    tolerance = 0.3

    @classmethod
    def make(cls, folder: Path) -> Path:
        return make(cls.architecture, folder, head_dim=16, hidden_size=96, intermediate_size=112)

    @classmethod
    def plain_model(cls) -> Any:
        model = super().plain_model()
        linears.replace(model, quantised.Int8Linear, silent, tied=True)
        return model

    def load(self) -> Device:
        plan = Plan("xeon", str(self.folder), rows=4, max_len=64, dtype="float32")
        device = xeon.load(plan, xeon.Options(weights="int8", threads=2, prefill_chunk=32))
        assert isinstance(device, NativeDevice)
        return device


class TestLlama(NativeContract):
    """Grouped-query attention."""

    architecture = "llama"


class TestMistral(NativeContract):
    """A sliding window of a few columns."""

    architecture = "mistral"


class TestQwen3(NativeContract):
    """Norms of heads."""

    architecture = "qwen3"


class TestGranite(NativeContract):
    """Factors on everything."""

    architecture = "granite"
