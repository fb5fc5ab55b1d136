"""On a machine with an Ascend NPU: `python -m pytest tests/hardware/test_ascend.py`, with CANN's set_env.sh sourced.

Tiny random models by default; `LANGCHAIN_ACCEL_MODEL` names a folder with a real one.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

if not Path("/dev/davinci_manager").exists() or find_spec("mindformers") is None:
    pytest.skip("needs an Ascend NPU and mindformers", allow_module_level=True)

from tests.hardware.ascend_laws import AscendLaws

pytestmark = [pytest.mark.hardware, pytest.mark.timeout(7200)]


class TestQwen3(AscendLaws):
    """Packed tokens: two graphs of dynamic shapes, pieces of prompts in the decode graph."""


class TestLlama(AscendLaws):
    """A graph for each shape, and pieces of prompts through `chunk_prefill`."""

    kind = "llama"


@pytest.mark.skipif(not Path("/dev/davinci1").exists(), reason="needs two Ascend NPUs")
class TestLlamaOnTwo(AscendLaws):
    """Held against one NPU's answers."""

    kind = "llama"
    ranks = 2
