"""The laws of the row step on the real mindformers, with transformers as the oracle."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

if find_spec("mindformers") is None:
    pytest.skip("needs mindformers: .ci/run builds a virtual environment for it", allow_module_level=True)

import torch
from transformers import AutoModelForCausalLM

from langchain_accel.devices import ascend
from langchain_accel.devices.base import Device, Plan
from langchain_accel.runtime.workers import WorkerGroup
from tests.contract.device_contract import DeviceContract
from tests.tiny_models import make

pytestmark = pytest.mark.timeout(900)


class AscendContract(DeviceContract):
    """The device in float32, in its own processes; one serves all laws, which forget its rows first."""

    architecture: str
    entries: ClassVar[dict[str, Any]] = {}
    rows = 4
    max_len: int
    chunk = 32
    ranks = 1
    tolerance = 1e-3
    repeats = 1

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _models(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        cls.folder = make(cls.architecture, tmp_path_factory.mktemp("contract") / cls.architecture, **cls.entries)
        cls.plain: Any = AutoModelForCausalLM.from_pretrained(cls.folder, dtype=torch.float32)
        cls.known: dict[tuple[int, ...], npt.NDArray[np.float32]] = {}
        cls.shared = cls.load(cls())
        yield
        cls.shared.close()
        assert "mindspore" not in sys.modules, "MindSpore was imported into the user's process"

    @pytest.fixture
    def device(self) -> Device:
        for row in range(self.shared.spec.rows):
            self.shared.forget(row)
        return self.shared

    def load(self) -> Device:
        options = ascend.Options(target="cpu", block_size=16, prefill_chunk=self.chunk)
        plan = Plan(
            "ascend",
            str(self.folder),
            rows=self.rows,
            max_len=self.max_len,
            tensor_parallel_size=self.ranks,
            options=options,
        )
        return WorkerGroup("langchain_accel.devices.ascend", plan, ascend.placement(plan, options))

    def oracle(self, tokens: Sequence[int]) -> npt.NDArray[np.floating]:
        key = tuple(tokens)
        if key not in self.known:
            with torch.inference_mode():
                logits = self.plain(torch.tensor([list(tokens)]), use_cache=False).logits[0, -1]
            self.known[key] = logits.numpy()
        return self.known[key]


class TestQwen3(AscendContract):
    """Packed tokens; a row's last block is larger than the rest of the row."""

    architecture = "qwen3"
    max_len = 50


class TestLlama(AscendContract):
    """A graph for each shape; a row ends where its last block does, so padding hangs over into nobody's block."""

    architecture = "llama"
    max_len = 48


class TestLlamaOnTwoRanks(AscendContract):
    """The mcore model of a Llama on two ranks, which both hold its one KV head.

    Every step costs sums between two processes: so the arena is about the smallest that the laws allow. Mutant seen to
    fail: only rank 0 copies a row.
    """

    architecture = "llama"
    entries: ClassVar[dict[str, Any]] = {"num_key_value_heads": 1}
    rows = 3
    max_len = 48
    chunk = 16
    ranks = 2
