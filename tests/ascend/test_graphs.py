"""What is compiled, when, and what the disk keeps of it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("mindformers") is None:
    pytest.skip("needs mindformers: .ci/run builds a virtual environment for it", allow_module_level=True)

import torch
from transformers import AutoModelForCausalLM

from tests.ascend.helpers import greedy, prompts
from tests.tiny_checkpoint import make_tiny_checkpoint
from tests.tiny_models import make

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]


def probe(what: str, model: Path, cache_dir: Path) -> dict[str, Any]:
    """Run `probe.py` in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.ascend.probe", what, str(model), str(cache_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    said = [line for line in done.stdout.splitlines() if line.startswith("PROBE ")]
    assert said, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads(said[-1].removeprefix("PROBE "))
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_nothing_is_compiled_after_warm_up(architecture: str, tmp_path: Path) -> None:
    """Every declared shape, at many columns, and copies of rows."""
    folder = make(architecture, tmp_path / architecture)
    assert probe("serve", folder, tmp_path / "cache")["compiled"] == []


def test_the_phases_that_mindformers_names_run_the_wrong_graph_and_ours_do_not(tmp_path: Path) -> None:
    """MindSpore runs a graph of the phase `increment` without a look at the shape of its inputs.

    The mutant is part of the test: with MindFormers' own two names the same steps go wrong.
    """
    found = probe("phases", make("llama", tmp_path / "llama"), tmp_path / "cache")
    assert found["ours"] < 1e-4
    assert isinstance(found["theirs"], str) or not found["theirs"] < 1e-2


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_second_start_reads_its_graphs_from_the_disk_and_its_weights_from_the_checkpoint(
    kind: str, tmp_path: Path
) -> None:
    """Three starts: the second finds every graph; the third has the same graphs and other weights."""
    folders = [
        make_tiny_checkpoint(tmp_path / str(seed), vocab_size=384, seed=seed, model_type=kind) for seed in (0, 1)
    ]
    starts, written = [], []
    for index in (0, 0, 1):
        starts.append(probe("warm", folders[index], tmp_path / "cache"))
        written.append({file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.mindir")})
    assert [start["found"] for start in starts] == [False, True, True]
    assert written[0]
    assert written[1] == written[0] == written[2]
    for start, folder in zip(starts, (folders[0], folders[0], folders[1]), strict=True):
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        right = greedy(plain, prompts(3, 20, seed=3)[-1], 8)
        assert tuple(start["answer"])[: len(right)] == right
    assert starts[0]["answer"] != starts[2]["answer"]
