"""Groups behind the engine and the registry: answers are the same, and a lost group is loaded again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors

from langchain_accel.devices import reference
from langchain_accel.devices.base import Placement, Plan
from langchain_accel.errors import AccelError, DeviceLost, StepFailed
from langchain_accel.runtime import registry
from langchain_accel.runtime.processes import environment
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.restarts import MOST_LOSSES, Restarts
from langchain_accel.runtime.workers import WorkerGroup
from tests.workers import troubled
from tests.workers.helpers import eventually, gone, known, open_group, pids, plan_for, prefill

pytestmark = pytest.mark.timeout(120)

PROMPTS = [[7, 8, 9], [7, 8, 9, 10], list(range(20, 50)), [3], list(range(20, 45)), [1, 2]]


def params(tokens: int = 8) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True)


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_restarts", Restarts())
    yield
    assert not registry._entries, "a test left an engine behind"


@pytest.fixture
def _troubled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find", lambda device: "tests.workers.troubled")


def group_of(lease: registry.Lease) -> WorkerGroup:
    group = lease.engine._loop.runner.device
    assert isinstance(group, WorkerGroup)
    return group


def test_two_ranks_give_the_answers_of_one(tiny: Path) -> None:
    """Through the registry, with requests that join, leave and share prefixes.

    Mutant to catch: `placement` not asked, so that nothing but one process runs.
    """
    answers = []
    for size in (1, 2):
        plan = Plan("reference", str(tiny), rows=3, max_len=64, tensor_parallel_size=size)
        lease = registry.shared(plan)
        assert isinstance(lease.engine._loop.runner.device, WorkerGroup) == (size == 2)
        streams = [lease.engine.submit(prompt, params()) for prompt in PROMPTS]
        left = lease.engine.submit([5, 6, 7], params(40))
        next(left)
        left.close()
        answers.append([stream.result().tokens for stream in streams])
        assert lease.engine.stats().undeclared_shapes == 0
        lease.close()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_group_fails_what_runs_and_is_loaded_again(tiny: Path, rank: int) -> None:
    """Mutants to catch: `StepFailed` for a rank that died; a lost engine leased again."""
    plan = Plan("reference", str(tiny), rows=2, max_len=64, tensor_parallel_size=2)
    lease = registry.shared(plan)
    expected = lease.engine.submit([5, 6], params()).result().tokens
    streams = [lease.engine.submit([5, index], params(60)) for index in range(5)]
    next(streams[0])
    before = pids(group_of(lease))
    os.kill(before[rank], signal.SIGKILL)
    for stream in streams:
        with pytest.raises(DeviceLost, match=rf"rank {rank} of 2 .*SIGKILL"):
            stream.result()
    assert lease.closed
    again = registry.shared(plan)
    assert again.engine.submit([5, 6], params()).result().tokens == expected
    assert all(map(gone, before))
    for each in (lease, again):
        each.close()


def test_a_group_that_was_lost_at_rest_costs_no_request(tiny: Path) -> None:
    """Mutant to catch: the engine asks its device nothing while it rests."""
    plan = Plan("reference", str(tiny), rows=2, max_len=64, tensor_parallel_size=2)
    lease = registry.shared(plan)
    expected = lease.engine.submit([5, 6], params()).result().tokens
    os.kill(pids(group_of(lease))[1], signal.SIGKILL)
    eventually(lambda: lease.closed)
    with pytest.raises(DeviceLost, match="rank 1 of 2"):
        lease.engine.submit([5, 6], params())
    again = registry.shared(plan)
    assert again.engine.submit([5, 6], params()).result().tokens == expected
    for each in (lease, again):
        each.close()


@pytest.mark.usefixtures("_troubled")
def test_a_step_that_fails_on_all_ranks_fails_its_requests_alone(tiny: Path) -> None:
    """Mutant to catch: a lost device."""
    lease = registry.shared(plan_for(tiny, trouble="raise", at="decode", after=40, ranks=(0, 1)))

    def serve_until_it_fails() -> None:
        for _ in range(100):
            lease.engine.submit([5, 6], params()).result()

    with pytest.raises(StepFailed, match="ValueError: a bit fell over"):
        serve_until_it_fails()
    assert not lease.closed
    assert len(lease.engine.submit([5, 6], params()).result().tokens) == 8
    lease.close()


@pytest.mark.usefixtures("_troubled")
@pytest.mark.parametrize(("at", "rank"), [("load", 1), ("prefill", 0)])
def test_a_group_that_is_lost_again_and_again_is_left_alone(tiny: Path, at: str, rank: int) -> None:
    """In its load, and in its warm-up: there the rank that answers, or the answer may come before the loss.

    Mutant to catch: no count, so that every request loads.
    """
    plan = plan_for(tiny, trouble="kill", at=at, ranks=(rank,))
    for _ in range(MOST_LOSSES):
        with pytest.raises(DeviceLost, match=rf"^rank {rank} of 2"):
            registry.shared(plan)
    with pytest.raises(DeviceLost, match=rf"^the device was lost 3 times in a row .* the last time: rank {rank} of 2"):
        registry.shared(plan)


def test_another_interpreter_needs_numpy_and_the_device_s_own_libraries_only(tiny: Path, tmp_path: Path) -> None:
    """It sees this package, and nothing else of this interpreter.

    Mutants to catch: the package's folder put on its path; an import of LangChain in `rank`.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "other"], check=True, timeout=60)
    python = tmp_path / "other/bin/python"
    site = next((tmp_path / "other/lib").glob("python*/site-packages"))
    for package in (np, safetensors):
        folder = Path(package.__file__).parent
        for part in folder.parent.glob(f"{folder.name}*"):
            if not part.name.endswith(".dist-info"):
                (site / part.name).symlink_to(part)
    for missing in ("langchain_core", "llguidance", "langchain_accel", "tests"):
        asked = [python, "-c", f"import {missing}"]
        assert subprocess.run(asked, cwd=tmp_path, capture_output=True, check=False, timeout=60).returncode == 1
    plan = Plan("reference", str(tiny), rows=4, max_len=64, options=reference.Options(attended_lens=(32, 64)))
    ours = reference.load(plan, plan.options, reference.Rank())
    group = WorkerGroup("langchain_accel.devices.reference", plan, Placement(ranks=2, python=str(python)))
    assert group.spec == ours.spec
    assert np.array_equal(prefill(group), prefill(ours))
    group.close()
    with pytest.raises(DeviceLost, match="No module named 'tests'"):
        open_group(tiny, python=str(python))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor cannot be shared")
def test_pinned_ranks_share_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither processors nor, by default, more threads than those. Mutant to catch: rank 0's share for all."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    plan = plan_for(tiny, folder=str(tmp_path))
    group = WorkerGroup("tests.workers.troubled", plan, Placement(ranks=2, pinned=True))
    first, second = (set(rank["cores"]) for rank in known(tmp_path))
    assert first
    assert second
    assert not first & second
    assert all(int(rank["threads"]) <= len(rank["cores"]) for rank in known(tmp_path))
    group.close()


def test_the_environment_of_a_rank() -> None:
    """Mutants to catch: the user's number of threads overwritten; another interpreter's search path kept."""
    ours = {"PATH": "/bin", "PYTHONPATH": "here", "OMP_NUM_THREADS": "7"}
    assert environment(Placement(), 0, {"PATH": "/bin"}) == {"PATH": "/bin"}
    assert environment(Placement(), 2, {"PATH": "/bin"}) == {"PATH": "/bin", "OMP_NUM_THREADS": "2"}
    assert environment(Placement(), 2, ours) == ours
    vendor = Placement(python="/vendor/python", environment=(("OMP_NUM_THREADS", "3"), ("VISIBLE", "0")))
    assert environment(vendor, 2, ours) == {"PATH": "/bin", "OMP_NUM_THREADS": "3", "VISIBLE": "0"}


def test_options_that_cannot_travel_are_refused(tiny: Path) -> None:
    with pytest.raises(AccelError, match=r"the option folder=.* cannot be sent to another process"):
        open_group(tiny, folder=Path("/"))
    assert troubled.Options().ranks == (0,)
