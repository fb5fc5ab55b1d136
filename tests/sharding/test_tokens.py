"""Greedy tokens of two ranks equal those of one, through the shared scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langchain_accel.devices.base import Device
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import SamplingParams
from tests.sharding.helpers import alone, together
from tests.tiny_models import VOCABULARY, make, tokenizer

NEEDS_DEEPSPEED = frozenset({"llama-tied", "qwen3", "bloom-6-heads", "falcon-new"})
LONG = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(
    scope="module",
    params=[
        "llama-tied",
        "qwen3",
        "bloom-6-heads",
        "falcon-new",
        "falcon-old",
        "falcon-alibi",
        "phi3",
        "mixtral",
        "gpt2",
    ],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param in NEEDS_DEEPSPEED and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed, which shards this architecture, is not installed")
    return make(request.param, tmp_path_factory.mktemp("sharded") / request.param)


@pytest.fixture(scope="module")
def engines(folder: Path) -> Iterator[tuple[Engine, Engine]]:
    opened = [engine(lambda: alone(folder)), engine(lambda: together(folder))]
    yield opened[0], opened[1]
    for each in opened:
        each.close()


def engine(load: Callable[[], Device]) -> Engine:
    return Engine(lambda _progress: load(), tokenizer(), eos_ids=frozenset({2}))


def prompts(count: int) -> list[list[int]]:
    """Of all lengths, every third beginning as the one before it does: rows are resumed and copied."""
    random = np.random.default_rng(5)
    made: list[list[int]] = []
    for index in range(count):
        tokens = random.integers(3, VOCABULARY, int(random.integers(1, 45))).tolist()
        made.append(made[-1][:20] + tokens[:15] if index % 3 == 2 else tokens)
    return made


def test_tokens_equal_one_ranks(engines: tuple[Engine, Engine]) -> None:
    """With joins, leaves and aborts. Mutants seen to fail: each rank's ALiBi slopes from the first head on; a bias
    added on every rank before the sum; the key and value of multi-query attention split."""
    one, two = engines
    asked = prompts(10)
    expected = [one.submit(prompt, LONG).result().tokens for prompt in asked]
    assert len(set(expected)) > len(asked) // 2, "the answers hardly differ: the test shows nothing"
    streams: list[Any] = [two.submit(prompt, LONG) for prompt in asked[:5]]  # one more than there are rows
    started = {0: next(streams[0]).tokens}
    streams[1].close()  # it is eleven steps from its end
    started[2] = next(streams[2]).tokens
    dropped = two.submit(asked[7], LONG)
    next(dropped)
    dropped.close()
    streams += [two.submit(prompt, LONG) for prompt in asked[5:]]
    for index in (0, 2, 3, 4, 5, 6, 7, 8, 9):
        tokens = (*started.get(index, ()), *streams[index].result().tokens)
        assert tokens == expected[index], f"prompt {index}"
    stats = two.stats()
    assert stats.reused_tokens > 0
    assert stats.aborted >= 1
    assert stats.undeclared_shapes == 0
