"""Two classes of this package in one process: torch here, MindSpore in a process with an interpreter of its own."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("mindformers") is None:
    pytest.skip("needs mindformers: .ci/run builds a virtual environment for it", allow_module_level=True)

from langchain_accel import AscendLLM, AscendOptions, XeonLLM
from tests.tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.timeout(600)


def test_one_program_uses_both_and_they_agree(tmp_path: Path) -> None:
    """The same texts, from bfloat16 weights computed in float32."""
    folder = make_tiny_checkpoint(tmp_path / "qwen3", model_type="qwen3", dtype="bfloat16")
    fields = {"model": str(folder), "rows": 2, "max_len": 128, "dtype": "float32", "max_tokens": 24}
    xeon = XeonLLM(**fields)
    ascend = AscendLLM(**fields, options=AscendOptions(target="cpu", python=sys.executable))
    try:
        texts = ["Once upon a time", "The quick brown fox"]
        assert ascend.batch(texts) == xeon.batch(texts)
        assert "mindspore" not in sys.modules
    finally:
        xeon.close()
        ascend.close()
