"""Groups of Ray actors on a cluster of two nodes: answers are the same, and what fails is understood.

The nodes are two sets of Ray's own processes on this machine, with a processor each, so that two ranks need both.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from langchain_accel.devices.base import Device, Placement, Plan
from langchain_accel.errors import DeviceLost, PlanRejected, StepFailed
from langchain_accel.runtime import ray_seats, registry
from langchain_accel.runtime.ray_group import RayGroup
from langchain_accel.runtime.replicas import Replicas
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.restarts import Restarts
from tests.contract.conftest import plain  # noqa: F401 - a fixture
from tests.contract.test_workers import GroupContract
from tests.workers import troubled
from tests.workers.helpers import dead, decode, eventually, known, plan_for, prefill

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install langchain-accel[ray]"),
    pytest.mark.enable_socket,
    pytest.mark.timeout(240),
]

PROMPTS = [[7, 8, 9], [7, 8, 9, 10], list(range(20, 50)), [3], list(range(20, 45)), [1, 2]]
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_restarts", Restarts())
    yield
    assert not registry._entries, "a test left an engine behind"


def params(tokens: int = 8) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True)


def plan(model: Path, **fields: Any) -> Plan:
    return Plan("reference", str(model), **{"rows": 3, "max_len": 64, "tensor_parallel_size": 2, **fields})


def group_of(lease: registry.Lease) -> RayGroup:
    group = lease.engine._loop.runner.device  # type: ignore[attr-defined]
    assert isinstance(group, RayGroup)
    return group


def pids(group: RayGroup) -> list[int]:
    return [seat.where.pid for seat in group._seats]


def open_group(model: Path, **options: Any) -> RayGroup:
    asked = plan_for(model, **options)
    return RayGroup("tests.workers.troubled", asked, troubled.placement(asked, asked.options))


class TestContract(GroupContract):
    """Mutants to catch: followers not called; logits of the step before."""

    def load(self) -> Device:
        asked = Plan("reference", str(self.folder), rows=4, max_len=64, options=self.options)
        return RayGroup(self.module, asked, Placement(ranks=self.ranks, resources=(("CPU", 0.5),)))


def test_two_nodes_give_the_answers_of_one_process_and_one_may_lose_its_rank(tiny: Path) -> None:
    """Through the registry, with requests that join, leave and share prefixes; then rank 1 is killed.

    Mutants to catch: `placement` not looked at, so that the ranks are local; `StepFailed` for an actor that died; the
    places of a lost group not given back.
    """
    alone = registry.shared(plan(tiny, tensor_parallel_size=1))
    expected = [alone.engine.submit(prompt, params()).result().tokens for prompt in PROMPTS]
    alone.close()
    lease = registry.shared(plan(tiny, placement="ray"))
    seats = group_of(lease)._seats
    assert len({seat.where.node for seat in seats}) == 2
    assert [(seat.rank.index, seat.rank.local_index, seat.rank.local_size) for seat in seats] == [(0, 0, 1), (1, 0, 1)]
    streams = [lease.engine.submit(prompt, params()) for prompt in PROMPTS]
    left = lease.engine.submit([5, 6, 7], params(40))
    next(left)
    left.close()
    assert [stream.result().tokens for stream in streams] == expected
    assert lease.engine.stats().undeclared_shapes == 0
    streams = [lease.engine.submit([5, index], params(60)) for index in range(5)]
    next(streams[0])
    before = pids(group_of(lease))
    os.kill(before[1], signal.SIGKILL)
    began = time.monotonic()
    for stream in streams:
        with pytest.raises(DeviceLost, match=rf"^rank 1 of 2 \(process {before[1]} on node 127.0.0.1\) died"):
            stream.result()
    print(f"a killed actor was noticed after {time.monotonic() - began:.2f} s")
    assert lease.closed
    again = registry.shared(plan(tiny, placement="ray"))
    assert again.engine.submit(PROMPTS[0], params()).result().tokens == expected[0]
    assert all(map(dead, before))
    for each in (lease, again):
        each.close()


def test_a_stopped_actor_is_noticed_at_rest_and_does_not_stay(tiny: Path) -> None:
    """Mutant to catch: no watch, so that a group at rest notices nothing."""
    group = open_group(tiny)
    os.kill(pids(group)[1], signal.SIGSTOP)
    eventually(lambda: group.lost is not None)
    with pytest.raises(DeviceLost, match=r"^rank 1 of 2 .* no sign of life .*: it is stopped"):
        prefill(group)
    group.close()
    eventually(lambda: all(map(dead, pids(group))), 10)


def test_failures_of_one_and_of_all(tiny: Path) -> None:
    """A load that is refused, a step that fails on every rank, one that fails on one of them, with its log.

    Mutants to catch: one rank's failure taken for everybody's; the first failure raised without asking the others.
    """
    with pytest.raises(PlanRejected, match="not on this rank"):
        open_group(tiny, trouble="reject", ranks=(1,))
    group = open_group(tiny, trouble="raise", at="decode", ranks=(0, 1))
    prefill(group)
    with pytest.raises(StepFailed, match="ValueError: a bit fell over"):
        decode(group)
    decode(group)
    group.close()
    group = open_group(tiny, trouble="raise", at="decode", ranks=(1,))
    prefill(group)
    with pytest.raises(DeviceLost, match=r"(?s)^rank 1 of 2 .* failed at its decode: .* this goes to the log"):
        decode(group)
    group.close()


def test_a_rank_that_lets_no_thread_run_is_not_silent(tiny: Path, tmp_path: Path) -> None:
    """It computes for longer than a silent rank may. Its environment was there before it started.

    Mutant seen to fail: the rank's own heartbeat alone looked at.
    """
    asked = plan_for(tiny, trouble="hold", at="decode", ranks=(1,), seconds=6.0, folder=str(tmp_path))
    where = Placement(ranks=2, environment=(("OMP_NUM_THREADS", "3"),))
    group = RayGroup("tests.workers.troubled", asked, where)
    assert [rank["threads"] for rank in known(tmp_path)] == ["3", "3"]
    addresses = {rank["rank"][4] for rank in known(tmp_path)}
    assert len(addresses) == 1
    assert addresses != {""}
    prefill(group)
    decode(group)
    assert group.lost is None
    group.close()


def test_what_cannot_be_placed_is_refused_with_the_numbers(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant to catch: a wait without an end."""
    monkeypatch.setattr(ray_seats, "PLACE_SECONDS", 1.0)
    with pytest.raises(PlanRejected, match=r"no room for 3 ranks of 1 CPU each: it has 2 CPU, of which 2 CPU free"):
        registry.shared(plan(tiny, placement="ray", tensor_parallel_size=3))
    asked = plan_for(tiny)
    with pytest.raises(PlanRejected, match="python='/vendor/python' and placement='ray' exclude each other"):
        RayGroup("tests.workers.troubled", asked, Placement(ranks=2, python="/vendor/python"))


def test_replicas_on_two_nodes(tiny: Path) -> None:
    """One killed while the other answers. Mutant to catch: all replicas on rank 0's node."""
    lease = registry.shared(plan(tiny, placement="ray", tensor_parallel_size=1, replicas=2))
    assert isinstance(lease.engine, Replicas)
    groups = [engine._loop.runner.device for engine in lease.engine.engines]
    assert len({group._seats[0].where.node for group in groups}) == 2  # type: ignore[attr-defined]
    streams = [lease.engine.submit(prompt, params()) for prompt in PROMPTS]
    answers = [stream.result().tokens for stream in streams]
    assert all(engine.stats().finished for engine in lease.engine.engines)
    os.kill(pids(groups[0])[0], signal.SIGKILL)  # type: ignore[arg-type]
    eventually(lambda: lease.engine.engines[0].closed)  # type: ignore[attr-defined]
    assert [lease.engine.submit(prompt, params()).result().tokens for prompt in PROMPTS] == answers
    lease.close()


PROGRAM = """
import sys, threading, time
from langchain_accel.devices.base import Plan
from langchain_accel.runtime import registry
from langchain_accel.runtime.request import SamplingParams

plan = Plan("reference", sys.argv[1], rows=2, max_len=64, tensor_parallel_size=2, placement="ray")
held = []
def first_request():
    held.append(registry.shared(plan))
thread = threading.Thread(target=first_request)  # as in a web server's pool: it ends, and Ray must not end with it
thread.start()
thread.join()
time.sleep(2)
params = SamplingParams(max_tokens=8, ignore_eos=True)
tokens = held[0].engine.submit([5, 6], params).result().tokens
group = held[0].engine._loop.runner.device
print([seat.where.pid for seat in group._seats], list(tokens), sep="\\n")
"""


def test_a_program_that_says_nothing_of_ray(tiny: Path) -> None:
    """Ray is started on this machine, by a thread that ends; the program just ends. Two ranks fit on one node.

    Mutant to catch: `ray.init` in the thread that asked: the next request hangs.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    ranks, tokens = (line for line in ended.stdout.splitlines() if line.startswith("["))
    assert "died" not in ended.stdout + ended.stderr, "an end in peace is reported as an accident"
    alone = registry.shared(plan(tiny, rows=2, tensor_parallel_size=1))
    expected = alone.engine.submit([5, 6], params()).result().tokens
    alone.close()
    assert tokens == str(list(expected))
    assert len(eval(ranks)) == 2
    eventually(lambda: all(map(dead, eval(ranks))), 30)
