"""A group of ranks keeps the laws of the row step as the device does that each rank runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from langchain_accel.devices import reference
from langchain_accel.devices.base import Device, Placement, Plan
from langchain_accel.runtime.workers import WorkerGroup
from tests.contract.device_contract import DeviceContract
from tests.contract.plain_llama import PlainLlama
from tests.workers import troubled


class GroupContract(DeviceContract):
    """One group serves all laws; the laws forget its rows first.

    Mutants of the group to catch: arrays sent in another order; `copy_row` not run; logits not copied.
    """

    ranks = 2
    module = "langchain_accel.devices.reference"
    options: object = reference.Options()

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _group(cls, tiny: Path, plain: PlainLlama) -> Iterator[None]:
        cls.folder, cls.plain = tiny, plain
        cls.shared = cls.load(cls())
        yield
        cls.shared.close()

    @pytest.fixture
    def device(self) -> Device:
        for row in range(self.shared.spec.rows):
            self.shared.forget(row)
        return self.shared

    def load(self) -> Device:
        plan = Plan("reference", str(self.folder), rows=4, max_len=64, options=self.options)
        return WorkerGroup(self.module, plan, Placement(ranks=self.ranks))

    def oracle(self, tokens: Sequence[int]) -> npt.NDArray[np.floating]:
        return self.plain.logits(tokens)


class TestTwoRanks(GroupContract):
    """Logits computed in shared memory."""


class TestOneRankOfItsOwn(GroupContract):
    """An isolated device, whose logits the group copies."""

    ranks = 1
    module = "tests.workers.troubled"
    options = troubled.Options(copies_logits=True)
