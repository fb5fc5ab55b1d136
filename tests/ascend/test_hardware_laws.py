"""The laws for real hardware, on MindSpore's CPU backend: so they are known to run, and to hold where they can."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

if find_spec("mindformers") is None:
    pytest.skip("needs mindformers: .ci/run builds a virtual environment for it", allow_module_level=True)

from tests.hardware.ascend_laws import AscendLaws

pytestmark = pytest.mark.timeout(600)


class TestQwen3OnTheCpu(AscendLaws):
    """In float32."""

    target = "cpu"
    requests = 12


class TestLlamaOnTheCpu(AscendLaws):
    """In float32."""

    kind = "llama"
    target = "cpu"
    requests = 12
