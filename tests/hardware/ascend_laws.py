"""What must hold on an Ascend NPU; the tests also run it on MindSpore's CPU backend, so that it is known to run at all.

The oracle is mindformers' own `generate()`. Tokens must be the same, save where two are equally likely.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langchain_accel.devices.ascend import Options
from langchain_accel.devices.base import Plan
from langchain_accel.runtime import registry
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import SamplingParams
from tests.hardware.answers import loss
from tests.tiny_checkpoint import make_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
ROWS, LENGTH, ANSWER = 4, 128, 12
PARAMS = SamplingParams(max_tokens=ANSWER, temperature=0.0, ignore_eos=True, logprobs=4)


@dataclass
class Served:
    """An engine on the device, prompts, and what `generate()` answered to each."""

    engine: Engine
    plan: Plan
    prompts: list[list[int]]
    right: list[tuple[int, ...]]


class AscendLaws:
    """Subclass it where an NPU is, real or not.

    Attributes:
        kind: model type of the tiny random model, where no other is named.
        target: of the device.
        requests: how many are answered.
    """

    kind = "qwen3"
    target = "ascend"
    requests = 40

    @property
    def tolerance(self) -> float:
        """How much less likely their token may be where the answers part: two units of the last place of a logit."""
        return 0.1 if self.target == "ascend" else 0.0

    def folder(self, scratch: Path) -> Path:
        """Return the model: `LANGCHAIN_ACCEL_MODEL`, or a tiny random one with heads as wide as the kernels ask for."""
        if given := os.environ.get("LANGCHAIN_ACCEL_MODEL"):
            return Path(given)
        return make_tiny_checkpoint(scratch / self.kind, hidden=256, intermediate=256, model_type=self.kind)

    @pytest.fixture(scope="class")
    def served(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
        folder = self.folder(tmp_path_factory.mktemp("model"))
        vocabulary = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
        chance = np.random.default_rng(0)
        sizes = [1, 2, 3, LENGTH - ANSWER, *chance.integers(4, LENGTH // 2, self.requests - 4)]
        prompts = [chance.integers(5, vocabulary, size).tolist() for size in sizes]
        right = generated(folder, self.target, prompts)
        plan = Plan("ascend", str(folder), rows=ROWS, max_len=LENGTH, options=Options(target=self.target))
        lease = registry.shared(plan)
        yield Served(lease.engine, plan, prompts, right)
        lease.close()

    @pytest.mark.parametrize("at_once", [1, 2, 40], ids=["alone", "low load", "high load"])
    def test_tokens_are_those_of_the_librarys_generate(self, served: Served, at_once: int) -> None:
        """Requests join and leave four rows; among them very short prompts, and one that fills its row."""
        running, answers = deque[Any](), []
        for prompt in served.prompts:
            if len(running) == at_once:
                answers.append(running.popleft().result())
            running.append(served.engine.submit(prompt, PARAMS))
        answers += [stream.result() for stream in running]
        lost = [loss(ours, theirs) for ours, theirs in zip(answers, served.right, strict=True)]
        assert max(lost) <= self.tolerance, f"answers part where nothing is near a tie: {lost}"
        assert sum(value > 0 for value in lost) <= len(lost) // 4

    def test_nothing_is_declared_in_service(self, served: Served) -> None:
        served.engine.submit(served.prompts[5], PARAMS).result()
        assert served.engine.stats().undeclared_shapes == 0

    def test_an_answer_left_early_frees_its_row(self, served: Served) -> None:
        for prompt in served.prompts[4:12]:
            stream = served.engine.submit(prompt, PARAMS)
            next(stream)
            stream.close()
        assert loss(served.engine.submit(served.prompts[5], PARAMS).result(), served.right[5]) <= self.tolerance

    def test_a_second_load_gives_the_same_tokens(self, served: Served) -> None:
        """The engine goes, its process with it, and comes back with the graphs on disk."""
        served.engine.close()
        again = registry.shared(served.plan)
        try:
            assert loss(again.engine.submit(served.prompts[4], PARAMS).result(), served.right[4]) <= self.tolerance
        finally:
            again.close()


def generated(folder: Path, target: str, prompts: list[list[int]]) -> list[tuple[int, ...]]:
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
