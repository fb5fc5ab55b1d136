"""The laws on an Ascend NPU; the tests also run them on MindSpore's CPU backend, so that they are known to run at all.

The oracle is mindformers' own `generate()`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from langchain_accel.devices.ascend import Options
from langchain_accel.devices.base import Plan
from tests.hardware.laws import ANSWER, LENGTH, ROWS, Answers, Laws
from tests.tiny_checkpoint import make_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]


class AscendLaws(Laws):
    """Subclass it where an NPU is, real or not.

    Attributes:
        kind: model type of the tiny random model, where no other is named.
        target: of the device.
        ranks: that share the model.
    """

    kind = "qwen3"
    target = "ascend"
    ranks = 1

    @property
    def tolerance(self) -> float:
        return 0.1 if self.target == "ascend" else 0.0

    def tiny(self, scratch: Path) -> Path:
        """Make a tiny random model with heads as wide as the kernels ask for."""
        return make_tiny_checkpoint(scratch / self.kind, hidden=256, intermediate=256, model_type=self.kind)

    def prepare(self, folder: Path, scratch: Path, prompts: list[list[int]]) -> tuple[Plan, Answers]:
        right = generated(folder, self.target, prompts)
        options = Options(target=self.target)
        plan = Plan("ascend", str(folder), rows=ROWS, max_len=LENGTH, tensor_parallel_size=self.ranks, options=options)
        return plan, right


def generated(folder: Path, target: str, prompts: list[list[int]]) -> Answers:
    """What the library answers, in a process of its own."""
    asked = {"model": str(folder), "target": target, "max_len": LENGTH, "tokens": ANSWER, "prompts": prompts}
    done = subprocess.run(
        [sys.executable, "-m", "tests.hardware.ascend_oracle", json.dumps(asked)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("ORACLE ")]
    assert said, done.stdout[-2000:] + done.stderr[-2000:]
    return [tuple(answer) for answer in json.loads(said[-1].removeprefix("ORACLE "))]
