"""Defects of optimum-habana 1.21.2 that a `generate()` of its own meets, and this device does not.

The first test shows that the stand-in is true enough to show them: there they are, in the library's own path.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from langchain_accel.runtime import registry
from langchain_accel.runtime.door import Door
from tests.gaudi.helpers import PYTHON, greedy, needs_optimum, params, plan
from tests.tiny_models import VOCABULARY, make

pytestmark = needs_optimum

LIBRARY = """
import os, sys
os.environ["PATH"] = os.path.dirname(sys.argv[1]) + os.pathsep + os.environ["PATH"]
import torch
from optimum.habana.transformers.modeling_utils import adapt_transformers_to_gaudi
adapt_transformers_to_gaudi()
from habana_frameworks.torch.hpu import wrap_in_hpu_graph
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], torch_dtype=torch.float32, attn_implementation="eager")
model = wrap_in_hpu_graph(model.eval().to("hpu"))

def answer(prompt, tokens):
    ids = torch.tensor([prompt]).to("hpu")
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                         ignore_eos=True, reuse_cache=True, lazy_mode=True, hpu_graphs=True)
    return out[0, len(prompt) : len(prompt) + tokens].tolist()

prompt = list(range(20, 29))
first, longer = answer(prompt, 6), answer(prompt, 12)
print("changed length:", "same" if first == longer[:6] else "other tokens")
try:
    answer(prompt[:-2], 14)
    print("changed prompt: served")
except AssertionError as error:
    print("changed prompt:", error)
"""


@dataclass
class Served:
    """An engine, and transformers' model."""

    engine: Door
    plain: Any


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = make("llama", tmp_path_factory.mktemp("defects") / "llama")
    plain = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    lease = registry.shared(plan(folder, flash_attention=True))
    yield Served(lease.engine, plain)
    lease.close()


def same(served: Served, prompt: list[int], tokens: int) -> bool:
    return served.engine.submit(prompt, params(tokens)).result().tokens == greedy(served.plain, prompt, tokens)


def test_the_library_itself_has_two_of_them(tmp_path: Path) -> None:
    """Its own `generate()` with graphs and `reuse_cache`, on the same stand-in."""
    from tests.gaudi.helpers import interpreter

    folder = make("llama", tmp_path / "llama")
    (tmp_path / "pip").write_text("#!/bin/sh\necho habana-torch-plugin 1.24.0\n")
    (tmp_path / "pip").chmod(0o755)
    ran = subprocess.run(
        [str(interpreter(tmp_path)), "-c", LIBRARY, str(tmp_path / "pip"), str(folder)],
        env={**os.environ, "PT_HPU_LAZY_MODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert "changed length: other tokens" in ran.stdout, ran.stdout + ran.stderr[-2000:]
    assert "changed prompt: inp_seq_len must be the same" in ran.stdout
    assert PYTHON in os.environ


def test_answers_of_other_lengths_to_the_same_prompt(served: Served) -> None:
    """There: the cache is allocated anew, and the prefill's graph goes on writing the old one. Silently wrong."""
    prompt = list(range(20, 29))
    for tokens in (6, 12, 3, 20):
        assert same(served, prompt, tokens)


def test_prompts_of_other_lengths_with_the_same_sum(served: Served) -> None:
    """There: AssertionError, `inp_seq_len must be the same`."""
    for prompt, tokens in ((9, 6), (7, 8), (12, 3)):
        assert same(served, list(range(20, 20 + prompt)), tokens)


def test_rows_go_on_when_another_row_has_ended(served: Served) -> None:
    """There: with an end-of-sequence token, rows that have none yet are overwritten with padding."""
    chance = random.Random(1)
    prompts = [[chance.randrange(5, VOCABULARY) for _ in range(size)] for size in range(4, 16)]
    right = [greedy(served.plain, prompt, 24) for prompt in prompts]
    assert len({len(answer) for answer in right}) > 1, "no answer ends early: this shows nothing"
    running = [served.engine.submit(prompt, params(24)) for prompt in prompts]
    assert [stream.result().tokens for stream in running] == right


def test_left_padded_prompts_with_flash_attention(served: Served) -> None:
    """There: `flash_attention_causal_mask` drops the mask, and padding is attended. It is never asked for here."""
    assert all(same(served, list(range(30, 30 + length)), 5) for length in (1, 3, 15, 17))
