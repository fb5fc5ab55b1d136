"""Greedy tokens of the real optimum-neuron, through the shared runtime, equal transformers' own."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optimum.neuron", reason="needs optimum-neuron: .ci/run builds a virtual environment for it")

import torch
from transformers import AutoModelForCausalLM

from langchain_accel.devices.base import Plan
from langchain_accel.devices.inferentia import Options
from langchain_accel.runtime import registry
from langchain_accel.runtime.batch import Job, complete
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import SamplingParams
from tests.standins import neuron
from tests.tiny_models import VOCABULARY, make

ROWS, LENGTH = 4, 64


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Random prompts; the first has one token, the second two."""
    chance = random.Random(seed)
    sizes = [1, 2, *(chance.randint(3, longest) for _ in range(count - 2))]
    return [[chance.randrange(5, VOCABULARY) for _ in range(size)] for size in sizes]


def greedy(plain: Any, prompt: list[int], tokens: int) -> tuple[int, ...]:
    """What transformers answers, an end-of-sequence token included."""
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        out = plain.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)
    return tuple(out[0, len(prompt) :].tolist())


def params(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.0)


def plan_of(folder: Path, cores: int, cache_dir: str) -> Plan:
    return Plan(
        "inferentia",
        str(folder),
        rows=ROWS,
        max_len=LENGTH,
        dtype="float32",
        tensor_parallel_size=cores,
        options=Options(cache_dir=cache_dir),
    )


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "granite", "phi3", "smollm3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    window = {"sliding_window": None} if request.param == "phi3" else {}
    folder = make(request.param, tmp_path_factory.mktemp("greedy") / request.param, **window)
    return folder, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_every_family_on_one_two_and_four_cores(checkpoint: tuple[Path, Any], cores: int, cache_dir: str) -> None:
    """Prompts of 1 to 40 tokens that join and leave four rows, among them one as long as an answer allows.

    Mutant: positions of padding count on, so that the logits of a padded token are answered.
    """
    folder, plain = checkpoint
    asked = [*prompts(7, 40), prompts(3, LENGTH - 8, seed=1)[-1]]
    lease = registry.shared(plan_of(folder, cores, cache_dir))
    try:
        compiled = neuron.COUNTERS.compiled
        answers = complete(lease.engine, [Job(prompt, params(8)) for prompt in asked])
        assert [visible(plain, answer.tokens) for answer in answers] == [
            visible(plain, greedy(plain, prompt, 8)) for prompt in asked
        ]
        assert len({answer.tokens for answer in answers}) > 4, "the answers hardly differ: this shows nothing"
        assert neuron.COUNTERS.compiled == compiled
        assert lease.engine.stats().undeclared_shapes == 0
    finally:
        lease.close()


def visible(plain: Any, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """The runtime hides the end-of-sequence token that transformers shows."""
    end = plain.generation_config.eos_token_id
    return tuple(token for token in tokens if token != end)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine on two cores, transformers' model, and forty requests with their right answers."""
    folder = make("llama", tmp_path_factory.mktemp("busy") / "llama")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = [(prompt, 2 + index % 11) for index, prompt in enumerate(prompts(40, 30, seed=2))]
    right = [visible(plain, greedy(plain, prompt, tokens)) for prompt, tokens in asked]
    lease = registry.shared(plan_of(folder, 2, str(tmp_path_factory.mktemp("exported"))))
    yield lease.engine, plain, asked, right
    lease.close()


@pytest.mark.parametrize("at_once", [2, 40], ids=["low load", "high load"])
def test_forty_requests_join_and_leave_four_rows(busy: Any, at_once: int) -> None:
    """At low load most rows are idle and pad; at high load a row is taken as soon as it is free.

    Mutant: `decode` answers in the order of rows, not of lanes.
    """
    engine: Engine
    engine, plain, asked, right = busy
    compiled = neuron.COUNTERS.compiled
    running, answers = deque[Any](), []
    for prompt, tokens in asked:
        if len(running) == at_once:
            answers.append(running.popleft().result())
        running.append(engine.submit(prompt, params(tokens)))
    answers += [stream.result() for stream in running]
    assert [visible(plain, answer.tokens) for answer in answers] == right
    assert neuron.COUNTERS.compiled == compiled
    assert engine.stats().undeclared_shapes == 0
