"""How ranks are told of each other; MindSpore is not needed."""

from __future__ import annotations

import os

import pytest

from langchain_accel.devices import ascend
from langchain_accel.devices.ascend import cluster
from langchain_accel.devices.base import Plan, Rank


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank is told goes to its environment, which is a copy here."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_a_rank_waits_for_the_others_as_long_as_the_engine_lets_it() -> None:
    """Left alone, sums between CPUs fail after 30 seconds: less than ranks may be apart while they compile.

    Mutant seen to fail: MindSpore is told nothing.
    """
    cluster.join(Rank(index=1, size=2, local_index=1, local_size=2, address="127.0.0.1:4000"))
    assert (os.environ["MS_ROLE"], os.environ["MS_NODE_ID"], os.environ["MS_WORKER_NUM"]) == ("MS_WORKER", "1", "2")
    assert (os.environ["MS_SCHED_HOST"], os.environ["MS_SCHED_PORT"]) == ("127.0.0.1", "4000")
    plan = Plan("ascend", "somewhere", tensor_parallel_size=2)
    placed = ascend.placement(plan, ascend.Options(python="elsewhere/bin/python"))
    assert float(os.environ["MS_NODE_TIMEOUT"]) == placed.silent_seconds


def test_a_rank_alone_is_told_nothing() -> None:
    before = dict(os.environ)
    cluster.join(Rank())
    assert os.environ == before
