"""On an inf2, trn1 or trn2 instance: `python -m pytest tests/hardware/test_inferentia.py`.

A tiny random Llama by default; `LANGCHAIN_ACCEL_MODEL` names a folder with a real one, `LANGCHAIN_ACCEL_CACHE` a folder
that keeps what was compiled.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

if not Path("/dev/neuron0").exists() or find_spec("torch_neuronx") is None:
    pytest.skip("needs a Neuron device and AWS's Neuron packages", allow_module_level=True)

from tests.hardware.inferentia_laws import InferentiaLaws

pytestmark = [pytest.mark.hardware, pytest.mark.timeout(7200)]


class TestOnTwoCores(InferentiaLaws):
    """The smallest instance has two."""


class TestOnOneCore(InferentiaLaws):
    """In float32, which shows a wrong column best."""

    cores = 1
    dtype = "float32"
