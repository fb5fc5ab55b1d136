"""The model in a process of its own, with another interpreter: the one that has the Neuron packages."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("optimum.neuron", reason="needs optimum-neuron: .ci/run builds a virtual environment for it")

from langchain_accel import InferentiaLLM, InferentiaOptions
from tests.standins import neuron
from tests.tiny_checkpoint import make_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def test_another_interpreter_serves_the_same_tokens(tmp_path: Path, cache_dir: str) -> None:
    """Two cores, one process: it finds the stand-in when it starts, as a Neuron machine's would find the packages.

    Mutant: `placement` that leaves `python` out: this process's counters show the steps.
    """
    folder = make_tiny_checkpoint(tmp_path / "tiny")
    fields = {"model": str(folder), "rows": 2, "max_len": 64, "dtype": "float32", "tensor_parallel_size": 2}
    here = InferentiaLLM(**fields, options=InferentiaOptions(cache_dir=cache_dir))
    expected = here.invoke("Once upon a time", max_tokens=8)
    here.close()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("from tests.inferentia import conftest\n")
    # The process starts without our PYTHONPATH, as an interpreter of another environment must.
    python = tmp_path / "python"
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec "{sys.executable}" -W ignore "$@"\n')
    python.chmod(0o755)
    steps = neuron.COUNTERS.executions.total()
    there = InferentiaLLM(**fields, options=InferentiaOptions(cache_dir=cache_dir, python=str(python)))
    try:
        assert there.invoke("Once upon a time", max_tokens=8) == expected
        assert neuron.COUNTERS.executions.total() == steps
    finally:
        there.close()
