"""On a Gaudi: `python -m pytest -s tests/hardware/test_gaudi.py`, in the environment that has Gaudi's software.

A tiny random Llama by default; `LANGCHAIN_ACCEL_MODEL` names a folder with a real one, and `LANGCHAIN_ACCEL_BLOOMZ` one
with BLOOMZ, of which the latency table is made.
"""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

if not Path("/dev/accel/accel0").exists() or find_spec("habana_frameworks") is None:
    pytest.skip("needs a Gaudi and Intel's Gaudi software", allow_module_level=True)

from langchain_accel import GaudiLLM, GaudiOptions
from tests.hardware.gaudi_laws import GaudiLaws

pytestmark = [pytest.mark.hardware, pytest.mark.timeout(7200)]


class TestLazy(GaudiLaws):
    """HPU graphs."""

    options = GaudiOptions()


class TestEager(GaudiLaws):
    """No graphs."""

    options = GaudiOptions(mode="eager")


class TestCompiled(GaudiLaws):
    """`torch.compile`."""

    options = GaudiOptions(mode="compile")


class TestWithFlashAttention(GaudiLaws):
    """The fused kernel, with a mask."""

    options = GaudiOptions(flash_attention=True)


class TestWithoutOptimumHabana(GaudiLaws):
    """Stock transformers."""

    options = GaudiOptions(stack="transformers")


@pytest.mark.skipif("LANGCHAIN_ACCEL_BLOOMZ" not in os.environ, reason="LANGCHAIN_ACCEL_BLOOMZ names no folder")
@pytest.mark.parametrize("ranks", [1, 8])
def test_the_latency_table_of_bloomz(ranks: int) -> None:
    """Seconds for 128 new tokens after a short prompt, as in the tables of the first articles on BLOOMZ on Gaudi."""
    options = GaudiOptions(allow_unverified=ranks > 1)
    fields = {"model": os.environ["LANGCHAIN_ACCEL_BLOOMZ"], "rows": 1, "max_len": 256}
    llm = GaudiLLM(**fields, tensor_parallel_size=ranks, options=options).load()
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        answer = llm.generate(["DeepSpeed is a machine learning framework"], max_tokens=128, ignore_eos=True)
        taken.append(time.perf_counter() - began)
        assert answer.llm_output is not None
        assert answer.llm_output["token_usage"]["completion_tokens"] == 128
    print(f"\n| {Path(fields['model']).name} | {ranks} Gaudi | {min(taken):.3f} s | {128 / min(taken):.1f} tokens/s |")
    llm.close()
