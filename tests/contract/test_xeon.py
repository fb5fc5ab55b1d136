"""The laws of the row step on the Xeon device, with transformers as the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM  # noqa: E402

from langchain_accel.devices import xeon  # noqa: E402
from langchain_accel.devices.base import Device, Plan  # noqa: E402
from tests.contract.device_contract import DeviceContract  # noqa: E402
from tests.tiny_models import make  # noqa: E402


class XeonContract(DeviceContract):
    """The device in float32 on one thread; one device serves all laws, which forget its rows first."""

    architecture: str
    tolerance = 1e-3
    repeats = 2

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _models(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        cls.folder = cls.make(tmp_path_factory.mktemp("contract") / cls.architecture)
        cls.plain: Any = cls.plain_model()
        cls.shared = cls.load(cls())
        yield
        cls.shared.close()

    @classmethod
    def make(cls, folder: Path) -> Path:
        return make(cls.architecture, folder)

    @classmethod
    def plain_model(cls) -> Any:
        return AutoModelForCausalLM.from_pretrained(cls.folder, dtype=torch.float32)

    @pytest.fixture
    def device(self) -> Device:
        for row in range(self.shared.spec.rows):
            self.shared.forget(row)
        return self.shared

    def load(self) -> Device:
        plan = Plan("xeon", str(self.folder), rows=4, max_len=64, dtype="float32")
        return xeon.load(plan, xeon.Options(threads=1, prefill_chunk=32))

    def oracle(self, tokens: Sequence[int]) -> npt.NDArray[np.floating]:
        with torch.inference_mode():
            logits: npt.NDArray[np.float32] = (
                self.plain(torch.tensor([list(tokens)]), use_cache=False).logits[0, -1].numpy()
            )
        return logits


class TestLlama(XeonContract):
    """Rotary positions, grouped-query attention."""

    architecture = "llama"


class TestMistral(XeonContract):
    """A sliding window of a few columns."""

    architecture = "mistral"


class TestFalconAlibi(XeonContract):
    """Positions as a bias of the attention, through an adapter."""

    architecture = "falcon-alibi"
