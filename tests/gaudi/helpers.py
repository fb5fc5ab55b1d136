"""What the tests of this device share. All of Gaudi happens in processes of its own: this one stays as it is."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from langchain_accel.devices import gaudi
from langchain_accel.devices.base import Plan
from langchain_accel.devices.gaudi import Options
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.workers import WorkerGroup
from tests.standins import habana

ROOT = Path(__file__).resolve().parents[2]
MODULE = "langchain_accel.devices.gaudi"
PYTHON = "HABANA_STANDIN_PYTHON"


needs_optimum = pytest.mark.skipif(
    find_spec("optimum") is None or find_spec("optimum.habana") is None,
    reason="needs optimum-habana: .ci/gaudi builds a virtual environment for it",
)
"""For tests of the real optimum-habana."""


def interpreter(folder: Path) -> Path:
    """Make an interpreter that finds the stand-in, as that of a Gaudi's virtual environment finds the real thing."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{habana.SITE}" exec "{sys.executable}" -W ignore "$@"\n')
    python.chmod(0o755)
    return python


def options(**changes: Any) -> Options:
    """Options with the stand-in's interpreter and short prefills."""
    return Options(**{"python": os.environ[PYTHON], "bucket_size": 16, **changes})


def plan(folder: Path, ranks: int = 1, **changes: Any) -> Plan:
    """A plan of four rows in float32; `options` are made of the keywords that are no field of a plan."""
    fields = {name: changes.pop(name) for name in ("rows", "max_len", "dtype") if name in changes}
    return Plan(
        "gaudi",
        str(folder),
        tensor_parallel_size=ranks,
        options=options(**changes),
        **{"rows": 4, "max_len": 64, "dtype": "float32", **fields},
    )


def loaded(asked: Plan) -> WorkerGroup:
    """Load a plan as the registry does."""
    return WorkerGroup(MODULE, asked, gaudi.placement(asked, asked.options))


def greedy(plain: Any, prompt: list[int], tokens: int) -> tuple[int, ...]:
    """What transformers answers, without the end-of-sequence token, which the runtime hides."""
    import torch

    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = plain.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)
    end = plain.generation_config.eos_token_id
    return tuple(token for token in out[0, len(prompt) :].tolist() if token != end)


def params(tokens: int) -> SamplingParams:
    """Greedy, up to so many tokens."""
    return SamplingParams(max_tokens=tokens, temperature=0.0)


def counts(file: Path) -> dict[str, Any]:
    """What the stand-in in the device's process has counted when it was last read from."""
    content: dict[str, Any] = json.loads(file.read_text())
    return content
