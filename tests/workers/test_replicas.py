"""Replicas on this machine: each in processes of its own, on cores of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from langchain_accel.chat_models import AccelChatModel
from langchain_accel.devices.base import Placement, Plan
from langchain_accel.errors import DeviceLost, PlanRejected
from langchain_accel.runtime import registry
from langchain_accel.runtime.cores import Share
from langchain_accel.runtime.replicas import Replicas
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.restarts import Restarts
from langchain_accel.runtime.workers import WorkerGroup, _shares
from tests.workers.helpers import dead, eventually, gone, known, pids, plan_for

pytestmark = pytest.mark.timeout(120)

PROMPTS = [[7, 8, 9], [7, 8, 9, 10], list(range(20, 50)), [3], list(range(20, 45)), [1, 2]]
FEW = SamplingParams(max_tokens=8, ignore_eos=True)


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_restarts", Restarts())
    yield
    assert not registry._entries, "a test left an engine behind"


class ChatReference(AccelChatModel):
    """A chat model on the reference device."""

    device: ClassVar[str] = "reference"


def groups(lease: registry.Lease) -> list[WorkerGroup]:
    assert isinstance(lease.engine, Replicas)
    devices: list[Any] = [engine._loop.runner.device for engine in lease.engine.engines]
    assert all(isinstance(device, WorkerGroup) for device in devices)
    return devices


def test_replicas_give_the_answers_of_one_and_one_may_die(tiny: Path) -> None:
    """Through the registry. Mutant seen to fail: replicas in this process. To catch: a lost one taken for all."""
    one = registry.shared(Plan("reference", str(tiny), rows=2, max_len=64))
    expected = [one.engine.submit(prompt, FEW).result().tokens for prompt in PROMPTS]
    lease = registry.shared(Plan("reference", str(tiny), rows=2, max_len=64, replicas=2))
    streams = [lease.engine.submit(prompt, FEW) for prompt in PROMPTS]
    assert [stream.result().tokens for stream in streams] == expected
    first, second = groups(lease)
    assert len({*pids(first), *pids(second), os.getpid()}) == 3
    assert all(engine.stats().finished for engine in lease.engine.engines)  # type: ignore[attr-defined]
    assert lease.engine.stats().finished == len(PROMPTS)
    before = pids(first)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: first.lost is not None)
    assert not lease.closed
    assert [lease.engine.submit(prompt, FEW).result().tokens for prompt in PROMPTS] == expected
    eventually(lambda: groups(lease)[0] is not first and not lease.engine.engines[0].closed)  # type: ignore[attr-defined]
    assert all(map(gone, before))
    after = [*pids(groups(lease)[0]), *pids(second)]
    assert [lease.engine.submit(prompt, FEW).result().tokens for prompt in PROMPTS] == expected
    for each in (one, lease):
        each.close()
    assert all(map(dead, after))


def test_a_replica_that_dies_again_and_again_is_left_alone(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its load. Mutant seen to fail: losses of replicas not counted."""
    monkeypatch.setattr(registry, "find", lambda device: "tests.workers.troubled")
    plan = replace(plan_for(tiny, size=1, trouble="kill", at="load"), replicas=2)
    for _ in range(3):
        with pytest.raises(DeviceLost, match=r"^rank 0 of 1"):
            registry.shared(plan)
    with pytest.raises(DeviceLost, match="the device was lost 3 times in a row"):
        registry.shared(plan)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor cannot be shared")
def test_replicas_share_no_processor(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant seen to fail: every replica's ranks on the first cores."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = []
    for part in (0, 1):
        folder = tmp_path / str(part)
        folder.mkdir()
        plan = plan_for(tiny, size=1, folder=str(folder))
        group = WorkerGroup("tests.workers.troubled", plan, Placement(pinned=True), part=(part, 2))
        cores.append(set(known(folder, ranks=1)[0]["cores"]))
        group.close()
    assert cores[0]
    assert cores[1]
    assert not cores[0] & cores[1]
    assert _shares(Placement(ranks=2), 1, 2) == [Share(), Share()]


async def test_a_chat_model_with_replicas_says_the_same(tiny: Path) -> None:
    """Mutants to catch: the field `replicas`, or `placement`, left out of the plan."""
    questions = ["What is one?", "And the sea?", "Tell me of the hills."]
    one, two = (ChatReference(model=str(tiny), rows=2, max_len=256, max_tokens=6, replicas=size) for size in (1, 2))
    expected = [one.invoke(question).content for question in questions]
    assert [answer.content for answer in two.batch(questions)] == expected
    assert "".join(str(chunk.content) for chunk in two.stream(questions[1])) == expected[1]
    assert (await two.ainvoke(questions[2])).content == expected[2]
    assert (one.stats().rows, two.stats().rows) == (2, 4)
    with pytest.raises(PlanRejected, match="placement must be 'local' or 'ray', got 'cloud'"):
        ChatReference(model=str(tiny), placement="cloud").load()
    with pytest.raises(PlanRejected, match="replicas must be at least 1, got 0"):
        ChatReference(model=str(tiny), replicas=0).load()
    for each in (one, two):
        each.close()
