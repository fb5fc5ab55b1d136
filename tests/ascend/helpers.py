"""Plans, prompts, and what transformers answers to them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from langchain_accel.devices.ascend import Options
from langchain_accel.devices.base import Plan
from langchain_accel.runtime.request import SamplingParams
from tests.tiny_models import VOCABULARY

ROWS, LENGTH = 4, 64


def options(**changes: Any) -> Options:
    return Options(**{"target": "cpu", "block_size": 16, "prefill_chunk": 16, **changes})


def plan_of(folder: Path, ranks: int = 1, **changes: Any) -> Plan:
    """Rows of four blocks; prompts longer than one block come in pieces."""
    return Plan(
        "ascend", str(folder), rows=ROWS, max_len=LENGTH, tensor_parallel_size=ranks, options=options(**changes)
    )


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Random prompts; the first has one token, the second two."""
    chance = random.Random(seed)
    sizes = [1, 2, *(chance.randint(3, longest) for _ in range(count - 2))]
    return [[chance.randrange(5, VOCABULARY) for _ in range(size)] for size in sizes]


def greedy(plain: Any, prompt: list[int], tokens: int) -> tuple[int, ...]:
    """What transformers answers; the end-of-sequence token, which the runtime hides, left out."""
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        out = plain.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)
    end = plain.generation_config.eos_token_id
    return tuple(token for token in out[0, len(prompt) :].tolist() if token != end)


def params(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.0)
