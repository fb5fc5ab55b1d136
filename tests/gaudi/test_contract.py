"""The laws of the row step on the real optimum-habana and on stock transformers, with transformers as the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from langchain_accel.devices.base import Device
from tests.contract.device_contract import DeviceContract
from tests.gaudi.helpers import loaded, needs_optimum, plan
from tests.tiny_models import make

pytestmark = needs_optimum


class GaudiContract(DeviceContract):
    """The device in float32, in its own process; one device serves all laws, which forget its rows first."""

    architecture: str
    overrides: ClassVar[dict[str, Any]] = {}
    options: ClassVar[dict[str, Any]] = {}
    tolerance = 1e-3
    repeats = 1

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _models(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        cls.folder = make(cls.architecture, tmp_path_factory.mktemp("contract") / cls.architecture, **cls.overrides)
        cls.plain: Any = AutoModelForCausalLM.from_pretrained(cls.folder, torch_dtype=torch.float32)
        cls.shared = cls.load(cls())
        yield
        cls.shared.close()

    @pytest.fixture
    def device(self) -> Device:
        for row in range(self.shared.spec.rows):
            self.shared.forget(row)
        return self.shared

    def load(self) -> Device:
        return loaded(plan(self.folder, max_len=48, **self.options))

    def oracle(self, tokens: Sequence[int]) -> npt.NDArray[np.floating]:
        with torch.inference_mode():
            logits: npt.NDArray[np.float32] = (
                self.plain(torch.tensor([list(tokens)]), use_cache=False).logits[0, -1].numpy()
            )
        return logits


class TestLlama(GaudiContract):
    """HPU graphs, rotary positions, grouped-query attention."""

    architecture = "llama"


class TestBloom(GaudiContract):
    """Distances from columns, keys in a layout of their own."""

    architecture = "bloom"


class TestMistralEagerWithFlashAttention(GaudiContract):
    """No graphs; the fused kernel."""

    architecture = "mistral"
    overrides: ClassVar[dict[str, Any]] = {"sliding_window": None}
    options: ClassVar[dict[str, Any]] = {"mode": "eager", "flash_attention": True}


class TestFalconAlibiWithoutOptimum(GaudiContract):
    """Stock transformers on the device: resumed and copied rows, drafts, positions as a bias of the attention."""

    architecture = "falcon-alibi"
    options: ClassVar[dict[str, Any]] = {"stack": "transformers"}
