"""The laws of the row step on the real optimum-neuron, with transformers as the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("optimum.neuron", reason="needs optimum-neuron: .ci/run builds a virtual environment for it")

import torch
from transformers import AutoModelForCausalLM

from langchain_accel.devices import inferentia
from langchain_accel.devices.base import Device, Plan
from tests.contract.device_contract import DeviceContract
from tests.standins import neuron
from tests.tiny_models import make


class InferentiaContract(DeviceContract):
    """The device in float32; one device serves all laws, which forget its rows first."""

    architecture: str
    cores = 2
    tolerance = 1e-3
    repeats = 1

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _models(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        cls.folder = make(cls.architecture, tmp_path_factory.mktemp("contract") / cls.architecture)
        cls.cache = str(tmp_path_factory.mktemp("exported"))
        cls.plain: Any = AutoModelForCausalLM.from_pretrained(cls.folder, dtype=torch.float32)
        cls.shared = cls.load(cls())
        cls.compiled = neuron.COUNTERS.compiled
        yield
        assert neuron.COUNTERS.compiled == cls.compiled, "something was compiled after the load"
        cls.shared.close()

    @pytest.fixture
    def device(self) -> Device:
        for row in range(self.shared.spec.rows):
            self.shared.forget(row)
        return self.shared

    def load(self) -> Device:
        plan = Plan(
            "inferentia", str(self.folder), rows=4, max_len=48, dtype="float32", tensor_parallel_size=self.cores
        )
        return inferentia.load(plan, inferentia.Options(cache_dir=self.cache))

    def oracle(self, tokens: Sequence[int]) -> npt.NDArray[np.floating]:
        with torch.inference_mode():
            logits: npt.NDArray[np.float32] = (
                self.plain(torch.tensor([list(tokens)]), use_cache=False).logits[0, -1].numpy()
            )
        return logits


class TestLlama(InferentiaContract):
    """Grouped-query attention, two KV heads on two cores."""

    architecture = "llama"


class TestQwen3OnFourCores(InferentiaContract):
    """Six query heads padded to eight, two KV heads copied to four; normed queries and keys of a width of their own."""

    architecture = "qwen3"
    cores = 4


class TestLlamaTiedOnOneCore(InferentiaContract):
    """Embedding and output head share their weights in the checkpoint."""

    architecture = "llama-tied"
    cores = 1
