"""One model over two Gaudi: upstream DeepSpeed takes optimum-habana's layers apart, the ranks sum inside graphs."""

from __future__ import annotations

from collections import deque
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from langchain_accel.runtime import registry
from tests.gaudi.helpers import counts, greedy, needs_optimum, params, plan
from tests.gaudi.test_greedy import requests
from tests.tiny_models import make

pytestmark = [
    needs_optimum,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="several ranks need DeepSpeed"),
]


def test_two_ranks_answer_as_one_model(tmp_path: Path, counters: Path) -> None:
    """Requests join and leave four rows; each rank replays the same graphs, sums among them, and captures none."""
    folder = make("llama", tmp_path / "llama")
    plain = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    asked = requests(16, 30)
    right = [greedy(plain, prompt, tokens) for prompt, tokens in asked]
    lease = registry.shared(plan(folder, ranks=2))
    try:
        ranks = [counters.with_name(counters.name + str(rank)) for rank in range(2)]
        before = [counts(rank) for rank in ranks]
        running, answers = deque[Any](), []
        for prompt, tokens in asked:
            if len(running) == 6:
                answers.append(running.popleft().result())
            running.append(lease.engine.submit(prompt, params(tokens)))
        answers += [stream.result() for stream in running]
        after = [counts(rank) for rank in ranks]
    finally:
        lease.close()
    assert [answer.tokens for answer in answers] == right
    assert before[0]["collectives"]["allreduce"] > 0
    for then, now in zip(before, after, strict=True):
        assert now["captures"] == then["captures"]
        assert now["replays"] > then["replays"]
        assert now["collectives"] == then["collectives"], "sums outside of graphs"
