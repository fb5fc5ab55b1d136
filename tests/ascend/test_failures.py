"""A rank that is killed, and what is refused with MindSpore there."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("mindformers") is None:
    pytest.skip("needs mindformers: .ci/run builds a virtual environment for it", allow_module_level=True)

import numpy as np
from safetensors.numpy import load_file, save_file

from langchain_accel import AscendLLM
from langchain_accel.devices import ascend
from langchain_accel.errors import DeviceLost, DeviceUnavailable, ModelRejected
from langchain_accel.runtime.workers import WorkerGroup
from tests.ascend.helpers import options, plan_of
from tests.tiny_checkpoint import make_tiny_checkpoint
from tests.workers.helpers import dead, eventually

pytestmark = pytest.mark.timeout(600)


def members(group: int) -> list[int]:
    """Process ids of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text("utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize(("kind", "ranks", "killed"), [("llama", 1, 0), ("qwen3", 2, 1)])
def test_a_rank_that_is_killed_loses_the_device_and_the_next_call_starts_it_again(
    tmp_path: Path, kind: str, ranks: int, killed: int
) -> None:
    """A running stream hears of it, and nothing is left of the ranks and their scheduler."""
    folder = make_tiny_checkpoint(tmp_path / "model", model_type=kind)
    llm = AscendLLM(
        model=str(folder), rows=2, max_len=256, tensor_parallel_size=ranks, ignore_eos=True, options=options()
    )
    try:
        right = llm.invoke("Once upon a time", max_tokens=8)
        device: Any = llm._engine_lease().engine._loop.runner.device
        started = [rank.pid for rank in device._ranks]
        everybody = [pid for group in started for pid in members(group)]
        assert len(everybody) >= ranks + (ranks > 1), "the scheduler was not found"
        stream = llm.stream("Once upon a time", max_tokens=200)
        next(stream)
        os.kill(started[killed], signal.SIGKILL)
        with pytest.raises(DeviceLost, match="was ended by signal SIGKILL"):
            list(stream)
        eventually(lambda: all(dead(pid) for pid in everybody), seconds=5)
        assert llm.invoke("Once upon a time", max_tokens=8) == right
    finally:
        llm.close()


@pytest.mark.skipif(Path("/dev/davinci_manager").exists(), reason="an NPU is here")
def test_a_machine_without_an_npu_is_told_what_is_missing(tiny: Path) -> None:
    """In one line, not in the forty of MindSpore's own message."""
    with pytest.raises(DeviceUnavailable) as error:
        AscendLLM(model=str(tiny), max_len=64).invoke("x")
    said = str(error.value)
    assert "cannot use Ascend device 0 here" in said
    assert "libge_runner.so: cannot open shared object file" in said
    assert "set_env.sh" in said
    assert len(said) < 1000


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_weights_that_are_missing_are_named(tmp_path: Path, kind: str) -> None:
    """mindformers logs them and goes on with random ones."""
    folder = make_tiny_checkpoint(tmp_path / "model", model_type=kind)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors")
    plan = plan_of(folder)
    with pytest.raises(ModelRejected, match=r"lacks weights that its config.json asks for: .*layers\.1\."):
        WorkerGroup("langchain_accel.devices.ascend", plan, ascend.placement(plan, plan.options))


def test_a_step_that_fails_loses_the_device(tmp_path: Path) -> None:
    """Tokens beyond the vocabulary; what the rows hold then is unknown."""
    plan = plan_of(make_tiny_checkpoint(tmp_path / "model"))
    group = WorkerGroup("langchain_accel.devices.ascend", plan, ascend.placement(plan, plan.options))
    one = np.ones(1, np.int64)
    with pytest.raises(DeviceLost):
        group.prefill(np.full((1, 16), 10**9), 16 * one, 0 * one, 0 * one)
    group.close()
