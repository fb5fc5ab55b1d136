"""Greedy tokens of the real mindformers, through the shared runtime, equal transformers' own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("mindformers") is None:
    pytest.skip("needs mindformers: .ci/run builds a virtual environment for it", allow_module_level=True)

import torch
from transformers import AutoModelForCausalLM

from langchain_accel.runtime import registry
from langchain_accel.runtime.engine import Engine
from tests.ascend.helpers import LENGTH, greedy, params, plan_of, prompts
from tests.tiny_models import make

pytestmark = pytest.mark.timeout(600)


@dataclass
class Served:
    """An engine, transformers' model, and requests with their right answers."""

    engine: Engine
    plain: Any
    asked: list[tuple[list[int], int]]
    right: list[tuple[int, ...]]


ROPES = {
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
"""Those of Llama 3, with a length so short that positions of all three kinds are there."""


@pytest.fixture(
    scope="module",
    params=[("llama-tied", 1, ROPES), ("qwen2", 1, {}), ("qwen3", 2, {}), ("llama", 2, ROPES)],
    ids=["llama", "qwen2", "qwen3 on two ranks", "llama on two ranks"],
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Mutants seen to fail: Llama 3's positions left as they are, in either model of a Llama."""
    architecture, ranks, entries = request.param
    folder = make(architecture, tmp_path_factory.mktemp("greedy") / architecture, **entries)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = [(prompt, 2 + index % 11) for index, prompt in enumerate(prompts(24, 40, seed=2))]
    asked.append((prompts(3, LENGTH - 8, seed=1)[-1], 8))
    right = [greedy(plain, prompt, tokens) for prompt, tokens in asked]
    assert len(set(right)) > len(right) // 2, "the answers hardly differ: this shows nothing"
    lease = registry.shared(plan_of(folder, ranks))
    yield Served(lease.engine, plain, asked, right)
    lease.close()


@pytest.mark.parametrize("at_once", [2, 40], ids=["low load", "high load"])
def test_requests_join_and_leave_four_rows(served: Served, at_once: int) -> None:
    """Prompts of 1 to 56 tokens, in pieces of at most 16. At low load most rows are idle and pad."""
    running, answers = deque[Any](), []
    for prompt, tokens in served.asked:
        if len(running) == at_once:
            answers.append(running.popleft().result())
        running.append(served.engine.submit(prompt, params(tokens)))
    answers += [stream.result() for stream in running]
    assert [answer.tokens for answer in answers] == served.right
    assert served.engine.stats().undeclared_shapes == 0


def test_a_remembered_prefix_is_resumed_and_copied(served: Served) -> None:
    """One after the other they resume a row; together they copy it."""
    shared = prompts(3, 40, seed=5)[-1]
    while len(shared) < 36:
        shared += shared
    asked = [[*shared[:36], *tail] for tail in ([7], [8, 9], [10, 11, 12])]
    right = [greedy(served.plain, prompt, 6) for prompt in asked]
    first = served.engine.submit(asked[0], params(6)).result()
    assert first.tokens == right[0]
    together = [served.engine.submit(prompt, params(6)) for prompt in asked]
    answers = [stream.result() for stream in together]
    assert [answer.tokens for answer in answers] == right
    assert all(answer.finish.reused_tokens >= 36 for answer in answers)


def test_streams_left_early_leave_nothing_behind(served: Served) -> None:
    """More streams are left than there are rows, in prefill and in decode; then every row serves a whole answer.

    What MindFormers' own `generate` loses when it is left, blocks, belongs to rows here: there is none to lose.
    """
    for prompt, _ in served.asked * 2:
        stream = served.engine.submit(prompt, params(12))
        if len(prompt) % 2:
            next(stream, None)
        stream.close()
    longest, tokens = served.asked[-1]
    answers = [stream.result() for stream in [served.engine.submit(longest, params(tokens)) for _ in range(8)]]
    assert {answer.tokens for answer in answers} == {served.right[-1]}
    stats = served.engine.stats()
    assert (stats.running, stats.queued) == (0, 0)
