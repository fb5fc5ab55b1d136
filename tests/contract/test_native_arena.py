"""The laws of the row step on models whose products and attention are the kernels', and whose steps are torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_accel_kernels", reason="pip install ./kernels")
pytest.importorskip("torch")

import torch

from langchain_accel.devices import xeon
from langchain_accel.devices.base import Device, Plan, silent
from langchain_accel.devices.processors import cpu_flags
from langchain_accel.devices.torch_rows import linears, quantised, rounding
from langchain_accel.devices.torch_rows.device import RowDevice
from langchain_accel.devices.torch_rows.native_arena import NativeArena
from tests.contract.test_xeon import XeonContract
from tests.tiny_models import make_uneven

if not quantised._INSTRUCTIONS.intersection(cpu_flags()):
    pytest.skip("the oracle needs 8-bit instructions", allow_module_level=True)


class NativeArenaContract(XeonContract):
    """With torch's 8-bit layers as the oracle."""

    tolerance = 0.3
    dtype = "float32"

    @classmethod
    def plain_model(cls) -> Any:
        model = super().plain_model()
        config = model.config.to_dict()
        rounds = rounding.choose(cls.folder, config, "int8", torch.float32, 1, silent, kernels=False)
        linears.replace(model, rounds.linear(model), silent, tied=True)
        return model

    @classmethod
    def make(cls, folder: Path) -> Path:
        return make_uneven(cls.architecture, folder)

    def load(self) -> Device:
        plan = Plan("xeon", str(self.folder), rows=4, max_len=64, dtype=self.dtype)
        with pytest.MonkeyPatch.context() as patch:  # on any processor, keys and values alone may be bfloat16
            patch.setattr(xeon, "fastest_dtype", lambda _flags: "float32")
            device = xeon.load(plan, xeon.Options(weights="int8", threads=2, prefill_chunk=32))
        assert isinstance(device, RowDevice)
        assert isinstance(device._attention.arena, NativeArena)
        return device


class TestPhi(NativeArenaContract):
    """Rotary positions in a part of each head; attention and MLP side by side."""

    architecture = "phi"


class TestFalconAlibi(NativeArenaContract):
    """Positions as a bias of the attention, through an adapter; heads of 12."""

    architecture = "falcon-alibi"


class TestGemma2(NativeArenaContract):
    """A soft cap on scores, and a window in every other layer."""

    architecture = "gemma2"


class TestBloom(NativeArenaContract):
    """ALiBi again, on keys and values in bfloat16."""

    architecture = "bloom"
    dtype = "auto"
