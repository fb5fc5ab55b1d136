"""`ChatGaudi` and `ChatXeon` in one process, which stays as it is."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from langchain_accel import ChatGaudi, ChatXeon, GaudiOptions
from langchain_accel.devices.xeon import Options as XeonOptions
from tests.gaudi.helpers import ROOT, needs_optimum, options
from tests.standins import habana
from tests.tiny_checkpoint import make_tiny_checkpoint

pytestmark = needs_optimum

QUESTIONS = ["What is the weather in Paris?", "Name three colours.", "Who wrote this?", "Why?"]


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("side") / "tiny")


def test_both_answer_at_the_same_time_with_the_same_tokens(tiny_llama: Path) -> None:
    """Both are asked for the first time at once, from threads and from an event loop; this process imports nothing."""
    fields = {"model": str(tiny_llama), "rows": 4, "max_len": 128, "dtype": "float32", "max_tokens": 12}
    gaudi = ChatGaudi(**fields, options=options())
    xeon = ChatXeon(**fields, options=XeonOptions(threads=1, prefill_chunk=32))

    async def both() -> list[list[str]]:
        answers = await asyncio.gather(
            *(model.abatch(QUESTIONS) for model in (gaudi, xeon)), asyncio.to_thread(gaudi.batch, QUESTIONS)
        )
        return [[str(answer.content) for answer in each] for each in answers]

    try:
        first, second, third = asyncio.run(both())
        assert first == second == third
        assert len(set(first)) == len(QUESTIONS)
        streamed = ["".join(str(chunk.content) for chunk in model.stream(QUESTIONS[0])) for model in (gaudi, xeon)]
        assert streamed == [first[0]] * 2
        assert not [name for name in sys.modules if name.startswith(("habana_frameworks", "optimum.habana"))]
    finally:
        gaudi.close()
        xeon.close()


def test_without_another_interpreter_it_still_has_its_own_process(tiny_llama: Path) -> None:
    """As in an environment that has Gaudi's software itself; its tokens are those of transformers here."""
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
os.environ["PT_HPU_LAZY_MODE"] = "0"  # says nothing to the model's process, which says it for itself
from langchain_accel import ChatGaudi, ChatXeon
fields = dict(model={str(tiny_llama)!r}, rows=2, max_len=128, dtype="float32", max_tokens=8)
said = [model(**fields).invoke("Why?").content for model in (ChatGaudi, ChatXeon)]
assert said[0] == said[1], said
assert "optimum.habana" not in sys.modules
print("same")
"""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": habana.SITE},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert ran.stdout.splitlines()[-1:] == ["same"], ran.stderr[-3000:]


def test_it_is_not_loaded_by_being_made(tiny_llama: Path) -> None:
    assert ChatGaudi(model=str(tiny_llama), options=GaudiOptions(python="nowhere/python")).rows == 8
