"""What must hold on a Gaudi: the tokens of the library's own `generate()`, whatever else runs; nothing captured late.

The library runs in a process of its own, before the device does: one process at a time has the Gaudi.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langchain_accel.devices.base import Plan
from langchain_accel.devices.gaudi import Options, placement
from langchain_accel.runtime import registry
from langchain_accel.runtime.door import Door
from langchain_accel.runtime.request import SamplingParams

ROWS, LENGTH, ANSWER = 4, 128, 12
PARAMS = SamplingParams(max_tokens=ANSWER, temperature=0.0, ignore_eos=True, logprobs=4)

LIBRARY = """
import json, sys
from langchain_accel.devices.gaudi import stack
stack.require("lazy")
stack.adapt()
import torch
from habana_frameworks.torch.hpu import wrap_in_hpu_graph
from transformers import AutoModelForCausalLM
folder, dtype, tokens, prompts = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=getattr(torch, dtype), attn_implementation="eager")
model = wrap_in_hpu_graph(model.eval().to("hpu"))
answers = []
for prompt in prompts:
    ids = torch.tensor([prompt]).to("hpu")
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                         ignore_eos=True, pad_token_id=0, lazy_mode=True, hpu_graphs=True).cpu()
    answers.append(out[0, len(prompt) : len(prompt) + tokens].tolist())
    model.clear_cache()
print("ANSWERS", json.dumps(answers))
"""


@dataclass
class Served:
    """An engine on the device, prompts, and what `generate()` answered to each."""

    engine: Door
    plan: Plan
    prompts: list[list[int]]
    right: list[list[int]]


class GaudiLaws:
    """Subclass it where a Gaudi is, real or not.

    Attributes:
        dtype: of weights and KV cache.
        requests: how many are answered.
        options: of the device.
    """

    dtype = "bfloat16"
    requests = 40
    options = Options()

    @property
    def tolerance(self) -> float:
        """How much less likely their token may be where the answers part: two units of the last place of a logit."""
        return 0.1 if self.dtype == "bfloat16" else 0.0

    def folder(self, scratch: Path) -> Path:
        """Return the model: `LANGCHAIN_ACCEL_MODEL`, or a tiny random Llama."""
        if given := os.environ.get("LANGCHAIN_ACCEL_MODEL"):
            return Path(given)
        from tests.tiny_models import make

        return make("llama", scratch / "llama")

    @pytest.fixture(scope="class")
    def served(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
        folder = self.folder(tmp_path_factory.mktemp("model"))
        options = self.options
        vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
        chance = np.random.default_rng(0)
        sizes = [1, 2, 3, LENGTH - ANSWER, *chance.integers(4, LENGTH // 2, self.requests - 4)]
        prompts = [chance.integers(5, vocabulary, size).tolist() for size in sizes]
        right = generated(options.python, str(folder), self.dtype, prompts)
        plan = Plan("gaudi", str(folder), rows=ROWS, max_len=LENGTH, dtype=self.dtype, options=options)
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
        """The engine goes, its process and memory on the device with it, and comes back."""
        served.engine.close()
        again = registry.shared(served.plan)
        try:
            assert loss(again.engine.submit(served.prompts[4], PARAMS).result(), served.right[4]) <= self.tolerance
        finally:
            again.close()


def generated(python: str | None, folder: str, dtype: str, prompts: list[list[int]]) -> list[list[int]]:
    """What the library answers, greedily, to the same number of tokens."""
    root = str(Path(__file__).resolve().parents[2])
    where = placement(Plan("gaudi", folder), Options())
    ran = subprocess.run(
        [python or "python", "-c", f"import sys; sys.path.insert(0, {root!r})\n{LIBRARY}"],
        input=json.dumps([folder, dtype, ANSWER, prompts]),
        env={**os.environ, **dict(where.environment)},
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    said = [line for line in ran.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert said, ran.stderr[-4000:]
    answers: list[list[int]] = json.loads(said[0].removeprefix("ANSWERS "))
    return answers


def loss(ours: Any, theirs: list[int]) -> float:
    """Return by how much their token is less likely than ours where two greedy answers part; 0 if they never do."""
    assert len(ours.tokens) == len(theirs)
    for entry, token in zip(ours.logprobs, theirs, strict=True):
        if entry.token != token:
            return float(entry.logprob - dict(entry.top).get(token, -np.inf))
    return 0.0
