"""What must hold on a Neuron device; the tests also run it on the stand-in, so that it is known to run at all.

The oracle is optimum-neuron's own `generate()` on the same compiled graphs. Tokens must be the same, save where two are
equally likely. It has the model for itself: it and the row step would destroy each other's KV cache.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langchain_accel.devices import inferentia
from langchain_accel.devices.base import Plan
from langchain_accel.devices.inferentia import Options
from langchain_accel.devices.inferentia.export import export
from langchain_accel.runtime import registry
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import SamplingParams
from tests.hardware.answers import loss

ROWS, LENGTH, ANSWER = 4, 128, 12
PARAMS = SamplingParams(max_tokens=ANSWER, temperature=0.0, ignore_eos=True, logprobs=4)


@dataclass
class Served:
    """An engine on the device, prompts, and what `generate()` answered to each."""

    engine: Engine
    plan: Plan
    prompts: list[list[int]]
    right: list[tuple[int, ...]]


class InferentiaLaws:
    """Subclass it where a device is, real or not.

    Attributes:
        cores: NeuronCores of the model.
        dtype: of the compiled graphs.
        requests: how many are answered.
    """

    cores = 2
    dtype = "bfloat16"
    requests = 40

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
        from optimum.neuron import NeuronModelForCausalLM

        options = Options(cache_dir=os.environ.get("LANGCHAIN_ACCEL_CACHE") or str(tmp_path_factory.mktemp("cache")))
        fields = {"rows": ROWS, "max_len": LENGTH, "dtype": self.dtype, "tensor_parallel_size": self.cores}
        checkpoint = self.folder(tmp_path_factory.mktemp("model"))
        artefact = export(Plan("inferentia", str(checkpoint), **fields), options)
        theirs = NeuronModelForCausalLM.from_pretrained(str(artefact))
        chance = np.random.default_rng(0)
        # `generate()` gives a prompt of one token to the decode graph, which rounds otherwise than the prefill graph:
        # only float32 is exact enough for the same tokens.
        shortest = 1 if self.dtype == "float32" else 2
        sizes = [shortest, 2, 3, LENGTH - ANSWER, *chance.integers(4, LENGTH // 2, self.requests - 4)]
        prompts = [chance.integers(5, theirs.config.vocab_size, size).tolist() for size in sizes]
        right = [_generated(theirs, prompt) for prompt in prompts]
        del theirs
        plan = Plan("inferentia", str(artefact), **fields, options=options)
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

    def test_nothing_is_compiled_or_declared_in_service(self, served: Served) -> None:
        served.engine.submit(served.prompts[5], PARAMS).result()
        assert served.engine.stats().undeclared_shapes == 0
        assert served.engine.stats().shapes == 2

    def test_an_answer_left_early_frees_its_row(self, served: Served) -> None:
        for prompt in served.prompts[4:12]:
            stream = served.engine.submit(prompt, PARAMS)
            next(stream)
            stream.close()
        assert loss(served.engine.submit(served.prompts[5], PARAMS).result(), served.right[5]) <= self.tolerance

    def test_a_second_load_gives_the_same_tokens(self, served: Served) -> None:
        """The engine goes, its memory on the device with it, and comes back from the exported model."""
        served.engine.close()
        again = registry.shared(served.plan)
        try:
            assert loss(again.engine.submit(served.prompts[4], PARAMS).result(), served.right[4]) <= self.tolerance
        finally:
            again.close()

    def test_one_process_is_asked_for(self) -> None:
        assert inferentia.placement(Plan("inferentia", "x", tensor_parallel_size=self.cores), Options()).ranks == 1


def _generated(model: Any, prompt: list[int]) -> tuple[int, ...]:
    """What the library answers, greedily, to the same number of tokens."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=ANSWER,
        eos_token_id=-1,
        pad_token_id=0,
    )
    return tuple(out[0, len(prompt) :].tolist())
