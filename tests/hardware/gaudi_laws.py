"""The laws on a Gaudi: nothing is captured late, whatever else runs.

The library runs in a process of its own, before the device does: one process at a time has the Gaudi.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from langchain_accel.devices.base import Plan
from langchain_accel.devices.gaudi import Options, placement
from tests.hardware.laws import ANSWER, LENGTH, ROWS, Answers, Laws

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


class GaudiLaws(Laws):
    """Subclass it where a Gaudi is, real or not.

    Attributes:
        dtype: of weights and KV cache.
        options: of the device.
    """

    dtype = "bfloat16"
    options = Options()

    @property
    def tolerance(self) -> float:
        return 0.1 if self.dtype == "bfloat16" else 0.0

    def prepare(self, folder: Path, scratch: Path, prompts: list[list[int]]) -> tuple[Plan, Answers]:
        right = generated(self.options.python, str(folder), self.dtype, prompts)
        return Plan("gaudi", str(folder), rows=ROWS, max_len=LENGTH, dtype=self.dtype, options=self.options), right


def generated(python: str | None, folder: str, dtype: str, prompts: list[list[int]]) -> Answers:
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
    return [tuple(answer) for answer in json.loads(said[0].removeprefix("ANSWERS "))]
