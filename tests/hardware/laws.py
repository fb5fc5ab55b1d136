"""What must hold on every accelerator, real or not: the tokens of the vendor library's own `generate()`.

Tokens must be the same, save where two are equally likely: in bfloat16 two tokens often have the very same logit, and
which of them is the largest is anybody's choice.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langchain_accel.devices.base import Plan
from langchain_accel.runtime import registry
from langchain_accel.runtime.door import Door
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.stream import Completion

ROWS, LENGTH, ANSWER = 4, 128, 12
PARAMS = SamplingParams(max_tokens=ANSWER, temperature=0.0, ignore_eos=True, logprobs=4)
Answers = list[tuple[int, ...]]


@dataclass
class Served:
    """An engine on the device, prompts, and what the library's `generate()` answered to each."""

    engine: Door
    plan: Plan
    prompts: list[list[int]]
    right: Answers


class Laws:
    """Subclass it for a device.

    Attributes:
        requests: how many are answered.
        shapes: compiled at load; None where the device says nothing of it.
    """

    requests = 40
    shapes: int | None = None

    @property
    def shortest(self) -> int:
        """Tokens of the shortest prompt."""
        return 1

    @property
    def tolerance(self) -> float:
        """How much less likely their token may be where the answers part: 0.1 is two units of a bfloat16 logit."""
        raise NotImplementedError

    def folder(self, scratch: Path) -> Path:
        """Return the model: `LANGCHAIN_ACCEL_MODEL`, or a tiny random one."""
        given = os.environ.get("LANGCHAIN_ACCEL_MODEL")
        return Path(given) if given else self.tiny(scratch)

    def tiny(self, scratch: Path) -> Path:
        """Make a tiny random model."""
        from tests.tiny_models import make

        return make("llama", scratch / "llama")

    def prepare(self, folder: Path, scratch: Path, prompts: list[list[int]]) -> tuple[Plan, Answers]:
        """Return what to serve, and what the library answers to the prompts before anything is served."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def served(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
        folder = self.folder(tmp_path_factory.mktemp("model"))
        vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        chance = np.random.default_rng(0)
        sizes = [self.shortest, 2, 3, LENGTH - ANSWER, *chance.integers(4, LENGTH // 2, self.requests - 4)]
        prompts = [chance.integers(5, vocabulary, size).tolist() for size in sizes]
        plan, right = self.prepare(folder, tmp_path_factory.mktemp("served"), prompts)
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
        stats = served.engine.stats()
        assert stats.undeclared_shapes == 0
        assert self.shapes in (None, stats.shapes)

    def test_an_answer_left_early_frees_its_row(self, served: Served) -> None:
        for prompt in served.prompts[4:12]:
            stream = served.engine.submit(prompt, PARAMS)
            next(stream)
            stream.close()
        assert loss(served.engine.submit(served.prompts[5], PARAMS).result(), served.right[5]) <= self.tolerance

    def test_a_second_load_gives_the_same_tokens(self, served: Served) -> None:
        """The engine goes, its process and memory on the device with it, and comes back."""
        served.engine.close()
        again = registry.shared(served.plan)
        try:
            assert loss(again.engine.submit(served.prompts[4], PARAMS).result(), served.right[4]) <= self.tolerance
        finally:
            again.close()


def loss(ours: Completion, theirs: tuple[int, ...]) -> float:
    """Return by how much their token is less likely than ours where two greedy answers part; 0 if they never do."""
    assert len(ours.tokens) == len(theirs)
    for entry, token in zip(ours.logprobs, theirs, strict=True):
        if entry.token != token:
            return float(entry.logprob - dict(entry.top).get(token, -math.inf))
    return 0.0
