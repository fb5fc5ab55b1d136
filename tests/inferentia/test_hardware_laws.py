"""The laws for real hardware, on the stand-in: so they are known to run, and to hold where they can be checked."""

from __future__ import annotations

import pytest

pytest.importorskip("optimum.neuron", reason="needs optimum-neuron: .ci/run builds a virtual environment for it")

from tests.hardware.inferentia_laws import InferentiaLaws


class TestOnTheStandin(InferentiaLaws):
    """bfloat16 on two cores, as on the smallest instance."""

    requests = 12


class TestInFloat32(InferentiaLaws):
    """One core; with a prompt of one token."""

    cores = 1
    dtype = "float32"
    requests = 12
