"""The laws on a Neuron device; the tests also run them on the stand-in, so that they are known to run at all.

The oracle is optimum-neuron's own `generate()` on the same compiled graphs. It has the model for itself: it and the row
step would destroy each other's KV cache.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from langchain_accel.devices import inferentia
from langchain_accel.devices.base import Plan
from langchain_accel.devices.inferentia import Options
from langchain_accel.devices.inferentia.export import export
from tests.hardware.laws import ANSWER, LENGTH, ROWS, Answers, Laws


class InferentiaLaws(Laws):
    """Subclass it where a device is, real or not.

    Attributes:
        cores: NeuronCores of the model.
        dtype: of the compiled graphs.
    """

    cores = 2
    dtype = "bfloat16"
    shapes = 2

    @property
    def tolerance(self) -> float:
        return 0.1 if self.dtype == "bfloat16" else 0.0

    @property
    def shortest(self) -> int:
        """`generate()` gives a prompt of one token to the decode graph, which rounds otherwise than the prefill graph:
        only float32 is exact enough for the same tokens."""
        return 1 if self.dtype == "float32" else 2

    def prepare(self, folder: Path, scratch: Path, prompts: list[list[int]]) -> tuple[Plan, Answers]:
        from optimum.neuron import NeuronModelForCausalLM

        options = Options(cache_dir=os.environ.get("LANGCHAIN_ACCEL_CACHE") or str(scratch / "cache"))
        fields = {"rows": ROWS, "max_len": LENGTH, "dtype": self.dtype, "tensor_parallel_size": self.cores}
        artefact = str(export(Plan("inferentia", str(folder), **fields), options))
        theirs = NeuronModelForCausalLM.from_pretrained(artefact)
        right = [_generated(theirs, prompt) for prompt in prompts]
        return Plan("inferentia", artefact, **fields, options=options), right

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
