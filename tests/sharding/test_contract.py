"""The laws of the row step hold for a model over two ranks as for one in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")

import torch
from transformers import AutoModelForCausalLM

from langchain_accel.devices.base import Device
from tests.contract.device_contract import DeviceContract
from tests.sharding.helpers import together
from tests.tiny_models import make


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed, which shards BLOOM, is not installed")
class TestTwoRanks(DeviceContract):
    """BLOOM in float32: DeepSpeed's shares, our attention on each rank's heads, with their slopes."""

    tolerance = 1e-3
    repeats = 2

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _models(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        cls.folder = make("bloom", tmp_path_factory.mktemp("contract") / "bloom")
        cls.plain: Any = AutoModelForCausalLM.from_pretrained(cls.folder, dtype=torch.float32)
        cls.shared = cls.load(cls())
        yield
        cls.shared.close()

    @pytest.fixture
    def device(self) -> Device:
        for row in range(self.shared.spec.rows):
            self.shared.forget(row)
        return self.shared

    def load(self) -> Device:
        return together(self.folder)

    def oracle(self, tokens: Sequence[int]) -> npt.NDArray[np.floating]:
        with torch.inference_mode():
            logits: npt.NDArray[np.float32] = (
                self.plain(torch.tensor([list(tokens)]), use_cache=False).logits[0, -1].numpy()
            )
        return logits

    def test_ranks_listen_on_the_loopback_interface_only(self) -> None:
        """Mutant seen to fail: torch's store makes its own socket, which listens on every interface."""
        inodes = {
            inode
            for rank in self.shared._ranks
            for file in Path(f"/proc/{rank.pid}/fd").iterdir()
            if (inode := str(file.readlink())).startswith("socket:")
        }
        listening = [
            fields[1].partition(":")[0]
            for table in ("tcp", "tcp6")
            for fields in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes
        ]
        assert listening, "rank 0 keeps the rendezvous open"
        assert set(listening) <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
