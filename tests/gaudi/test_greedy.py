"""Greedy tokens through the shared runtime equal transformers' own, on both stacks and in every mode."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from langchain_accel.devices.gaudi.verified import VERIFIED
from tests.gaudi.helpers import PYTHON, ROOT, greedy, needs_optimum
from tests.standins import habana
from tests.tiny_models import ARCHITECTURES, VOCABULARY, make

pytestmark = needs_optimum

LENGTH = 64
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "falcon-old": {},
    "falcon-alibi": {},
    "falcon-new": {"num_attention_heads": 16, "num_kv_heads": 8, "hidden_size": 128},
    "bloom": {},
    "bloom-6-heads": {},
    "gpt-neox": {},
    "mixtral": {},
}
"""Tiny models of the verified types, with the config entries that differ from the tiny ones of other devices."""

WAYS: dict[str, dict[str, Any]] = {
    "lazy": {"mode": "lazy"},
    "flash": {"mode": "lazy", "flash_attention": True, "limit_hpu_graphs": True},
    "eager": {"mode": "eager"},
    "compile": {"mode": "compile"},
    "stock": {"stack": "transformers"},
    "stock-lazy": {"stack": "transformers", "mode": "lazy"},
}
LOADS = {"lazy": [2, 40]}
"""Requests at once; 40 where nothing is said, which is the harder one."""

WARM = ("lazy", "compile")
"""Ways that capture or compile their steps."""

Requests = list[tuple[list[int], int]]


def requests(count: int, longest: int) -> Requests:
    """Random prompts, from one token to as many as leave room for the answer, and the lengths of their answers."""
    chance = random.Random(0)
    sizes = [1, 2, LENGTH - 12, *(chance.randint(3, longest) for _ in range(count - 3))]
    prompts = [[chance.randrange(5, VOCABULARY) for _ in range(size)] for size in sizes]
    return [(prompt, 2 + index % 7) for index, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Requests, list[list[int]]]]:
    """A model's folder, its requests, and transformers' answers to them."""

    @cache
    def made(model: str) -> tuple[Path, Requests, list[list[int]]]:
        folder = make(model, tmp_path_factory.mktemp("greedy") / model, **MODELS[model])
        plain = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
        asked = requests(40, 30)
        answers = [list(greedy(plain, prompt, tokens)) for prompt, tokens in asked]
        assert len(set(map(tuple, answers))) > 20, "the answers hardly differ: this shows nothing"
        return folder, asked, answers

    return made


@pytest.fixture(scope="module")
def served(right: Callable[[str], Any]) -> Callable[[str], dict[str, Any]]:
    """What a process answers that serves all models in one way."""

    @cache
    def done(way: str) -> dict[str, Any]:
        orders = [order(way, folder, asked, LOADS.get(way, [40])) for folder, asked, _ in map(right, MODELS)]
        return dict(zip(MODELS, run(orders), strict=True))

    return done


def order(way: str, folder: Path, asked: Requests, at_once: list[int]) -> dict[str, Any]:
    """What one model is to answer, in one way."""
    options = {"bucket_size": 16, **WAYS[way]}
    return {"folder": str(folder), "requests": asked, "options": options, "at_once": at_once}


def run(orders: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answer in a process of its own, which is Gaudi's."""
    path = [str(ROOT), habana.SITE]
    lazy = orders[0]["options"].get("mode") == "lazy"
    ran = subprocess.run(
        [os.environ[PYTHON], "-c", f"import sys; sys.path[:0] = {path!r}\n{_RUN}"],
        input=json.dumps(orders),
        env={**os.environ, "PT_HPU_LAZY_MODE": str(int(lazy))},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return list(map(json.loads, ran.stdout.splitlines()))


_RUN = "import runpy; runpy.run_module('tests.gaudi.serving', run_name='__main__')"


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_forty_requests_join_leave_and_abort(
    model: str, way: str, right: Callable[[str], Any], served: Callable[[str], Any]
) -> None:
    """At low load most rows are idle and pad; at high load a row is taken as soon as it is free."""
    _, _, answers = right(model)
    ran = served(way)[model]
    for at_once, got in ran["answers"].items():
        assert got == answers, f"{at_once} at once"
    assert ran["undeclared"] == 0
    assert ran["aborted"] > 0


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("way", WARM)
@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_captured_or_compiled_in_service(model: str, way: str, served: Callable[[str], Any]) -> None:
    """Not even a recipe of a few operations; and the host waits for the device once per step."""
    check_counts(served(way)[model]["counts"])


@pytest.mark.timeout(2400)
def test_nothing_is_captured_over_five_hundred_requests(right: Callable[[str], Any]) -> None:
    """Of random length, on graphs."""
    folder, _, _ = right("llama")
    (ran,) = run([order("lazy", folder, requests(500, 50), [40])])
    assert len(ran["answers"]["40"]) == 500
    check_counts(ran["counts"])


def check_counts(counts: list[dict[str, int]]) -> None:
    before, *_, after = counts
    for name in ("captures", "compilations", "recipes"):
        assert after[name] == before[name], name
    assert after["reads"] - before["reads"] == after["steps"] - before["steps"] > 0


def test_every_verified_type_is_here() -> None:
    assert {ARCHITECTURES[name][0] for name in MODELS} == VERIFIED
