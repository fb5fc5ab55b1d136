"""What happens when a rank dies, raises, is silent or is late: an error that says so, and nothing is left running."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langchain_accel.errors import (
    DeviceLost,
    DeviceUnavailable,
    EngineClosed,
    PlanRejected,
    StepFailed,
    UndeclaredShape,
)
from langchain_accel.runtime import workers
from langchain_accel.runtime.workers import WorkerGroup
from tests.workers.helpers import CALLS, decode, descriptors, eventually, gone, ints, open_group, pids, prefill

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Mutant seen to fail: a channel that is not closed. To catch: no reaping; a watch that is not stopped."""
    before, started = descriptors(), []
    start = workers.RankProcess.__init__

    def noted(self: Any, *arguments: Any) -> None:
        start(self, *arguments)
        started.append(self.pid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.RankProcess, "__init__", noted)
        yield
    assert started
    assert [pid for pid in started if not gone(pid)] == []
    assert descriptors() == before
    assert [thread.name for thread in threading.enumerate() if thread.name == "accel-watch"] == []


OFTEN = 10_000
"""Calls that take longer than any failure takes to show."""


def fails(group: WorkerGroup, call: str) -> DeviceLost:
    """Make a call that loses the device; return the error, which every later call meets as well."""
    prefill(group)
    with pytest.raises(DeviceLost) as caught:
        for _ in range(OFTEN):  # rank 0 may answer before a follower comes to grief: it does not need it here
            CALLS[call](group)
    for later in ("decode", "forget"):
        with pytest.raises(DeviceLost) as again:
            CALLS[later](group)
        assert str(again.value) == str(caught.value)
    assert str(group.lost) == str(caught.value)
    group.close()
    return caught.value


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("at", ["decode", "verify", "copy_row", "forget"])
def test_a_rank_that_is_killed_loses_the_device(tiny: Path, at: str, rank: int) -> None:
    """Mutants seen to fail: only rank 0's socket polled; the name of the first rank instead of the dead one's."""
    group = open_group(tiny, trouble="kill", at=at, ranks=(rank,))
    error = fails(group, at)
    assert f"rank {rank} of 2 (process {pids(group)[rank]}) was ended by signal SIGKILL" in str(error)
    assert "its log is empty" in str(error)


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ("segv", "was ended by signal SIGSEGV"),
        ("exit", "exited with code 7"),
        ("system exit", "exited with code 3"),
        ("lost", "failed at its decode: DeviceLost: the card fell out"),
        ("nonsense", "sent what cannot be read"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_says_why(tiny: Path, trouble: str, why: str, rank: int) -> None:
    """And what the rank last wrote. Mutants seen to fail: no `faulthandler`; the log's beginning instead of its end."""
    error = fails(open_group(tiny, trouble=trouble, at="decode", ranks=(rank,)), "decode")
    assert f"rank {rank} of 2" in str(error)
    assert why in str(error)
    if trouble == "segv":
        assert "Fatal Python error: Segmentation fault" in str(error)
    if trouble == "lost":
        assert str(error).endswith("langchain_accel.errors.DeviceLost: the card fell out")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("trouble", "why"),
    [("kill", "SIGKILL"), ("raise", "failed at its load: ValueError: a bit fell over"), ("exit", "code 7")],
)
def test_a_rank_that_fails_to_load_ends_the_load(tiny: Path, rank: int, trouble: str, why: str) -> None:
    """Mutant seen to fail: only rank 0's load waited for."""
    with pytest.raises(DeviceLost, match=why) as caught:
        open_group(tiny, trouble=trouble, ranks=(rank,))
    assert f"rank {rank} of 2" in str(caught.value)
    assert ("this goes to the log" in str(caught.value)) == (trouble == "raise")


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
def test_a_load_that_a_device_refuses_raises_the_refusal(tiny: Path, ranks: tuple[int, ...]) -> None:
    """As the class it was. Mutant seen to fail: every error of a load a `DeviceLost`."""
    with pytest.raises(PlanRejected, match="not on this rank"):
        open_group(tiny, trouble="reject", ranks=ranks)


@pytest.mark.parametrize("at", ["prefill", "decode", "verify", "copy_row", "forget"])
def test_a_step_that_fails_on_every_rank_fails_alone(tiny: Path, at: str) -> None:
    """The same call works afterwards. Mutants seen to fail: `DeviceLost`; the answer of a sync taken for the next's."""
    group = open_group(tiny, trouble="raise", at=at, after=1, ranks=(0, 1))
    prefill(group)
    expected = decode(group).copy()
    for call in ("prefill", "decode", "verify", "copy_row", "forget"):
        if call == at and call not in ("prefill", "decode"):
            CALLS[call](group)
        if call == at:
            with pytest.raises(StepFailed, match="ValueError: a bit fell over"):
                CALLS[call](group)
        CALLS[call](group)
    prefill(group)
    assert np.array_equal(decode(group), expected)
    assert group.lost is None
    group.close()


def test_an_error_of_this_package_keeps_its_class(tiny: Path) -> None:
    """Mutant seen to fail: `StepFailed` for all."""
    group = open_group(tiny)
    with pytest.raises(UndeclaredShape, match="was never declared"):
        group.decode(ints(1, 2, 3), ints(0, 0, 0), ints(0, 1, 2))
    prefill(group)
    group.close()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("at", ["decode", "forget"])
def test_a_rank_that_fails_alone_loses_the_device(tiny: Path, at: str, rank: int) -> None:
    """The ranks no longer agree on what the rows hold. Mutant seen to fail: rank 0's error raised as it is."""
    group = open_group(tiny, trouble="raise", at=at, ranks=(rank,))
    prefill(group)
    with pytest.raises(DeviceLost, match=rf"rank {rank} of 2 .*ValueError: a bit fell over"):
        for _ in range(OFTEN):
            CALLS[at](group)
    group.close()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("at", ["load", "decode"])
def test_a_frozen_rank_is_noticed(tiny: Path, at: str, rank: int) -> None:
    """Long before its time for the step is up. Mutant seen to fail: the heartbeat of rank 0 looked at for all."""
    with pytest.raises(DeviceLost, match=rf"rank {rank} of 2 .*no sign of life .*is stopped"):
        fails_later(open_group(tiny, trouble="stop", at=at, ranks=(rank,)))


def fails_later(group: WorkerGroup) -> None:
    try:
        prefill(group)
        while True:  # rank 0 answers for a while when the other one is frozen
            decode(group)
    finally:
        group.close()


@pytest.mark.parametrize("trouble", ["sleep", "hold"])
@pytest.mark.parametrize("at", ["load", "decode"])
def test_a_rank_that_is_busy_for_long_is_left_alone(tiny: Path, at: str, trouble: str) -> None:
    """Asleep with a beating heart, or computing so hard that its heart cannot beat.

    Mutants seen to fail: no heartbeat thread (sleep); processor time not looked at (hold).
    """
    group = open_group(tiny, trouble=trouble, at=at, seconds=6.0, ranks=(0, 1))
    prefill(group)
    decode(group)
    assert group.lost is None
    group.close()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_step_that_never_ends_is_given_up(tiny: Path, rank: int) -> None:
    """Where a follower sleeps, rank 0 may go ahead until its calls are no longer taken; this law asks rank 0.

    Mutant to catch: no deadline.
    """
    group = open_group(tiny, trouble="sleep", at="decode", seconds=3600.0, ranks=(rank,), step_seconds=1.0)
    prefill(group)
    if rank == 1:
        decode(group)
        with pytest.raises(DeviceLost, match=r"rank 1 of 2 .* is alive but has not taken its prefill in time"):
            for _ in range(FILLS):
                group.prefill(np.zeros((4, 64), np.int64), ints(1, 1, 1, 1), ints(0, 0, 0, 0), ints(0, 1, 2, 3))
    else:
        with pytest.raises(DeviceLost, match=r"rank 0 of 2 .* has not finished its decode within the limit of 1 sec"):
            decode(group)
    group.close()


FILLS = 1000
"""Prefills of 2 KiB that no socket's buffer holds."""


def test_a_rank_that_dies_while_nobody_calls_is_noticed(tiny: Path) -> None:
    """Mutant seen to fail: no watch."""
    group = open_group(tiny)
    os.kill(pids(group)[1], signal.SIGTERM)
    eventually(lambda: group.lost is not None)
    assert "rank 1 of 2" in str(group.lost)
    assert "was ended by signal SIGTERM" in str(group.lost)
    eventually(lambda: all(rank.ended() for rank in group._ranks))
    group.close()


@pytest.mark.parametrize("trouble", ["raise", "kill", "stop", "sleep"])
def test_close_ends_ranks_that_cannot_close(tiny: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """Mutant seen to fail: no kill after the wait."""
    monkeypatch.setattr(workers, "CLOSE_SECONDS", 0.5)
    group = open_group(tiny, trouble=trouble, at="close", ranks=(0, 1), seconds=3600.0)
    group.close()
    group.close()
    with pytest.raises(EngineClosed):
        prefill(group)


def test_a_group_that_is_dropped_ends(tiny: Path) -> None:
    """Mutant to catch: no finaliser."""
    group = open_group(tiny)
    ranks = pids(group)
    del group
    import gc

    gc.collect()
    eventually(lambda: all(map(gone, ranks)))


def test_a_talkative_rank_fills_no_disk(tiny: Path) -> None:
    """Its log is cut; its last lines are kept. Mutant to catch: no `trim`."""
    group = open_group(tiny, trouble="write", at="decode")
    prefill(group)
    decode(group)
    eventually(lambda: os.fstat(group._ranks[0].log.fileno()).st_size < 2**20)
    time.sleep(0)
    assert group._ranks[0].log.last_lines(1) == "\n    line 199999 of a talkative device"
    group.close()


def test_logits_that_are_no_float32_are_refused(tiny: Path) -> None:
    """Mutant to catch: the bytes of whatever comes put into shared memory."""
    group = open_group(tiny, size=1, trouble="float64", at="decode")
    prefill(group)
    with pytest.raises(StepFailed, match="decode must return a float32 array, got float64"):
        decode(group)
    group.close()


def test_an_interpreter_that_is_not_there_is_named(tiny: Path) -> None:
    """Mutant to catch: the error of the operating system."""
    with pytest.raises(DeviceUnavailable, match=r"'/no/such/python' cannot be started: .* set python"):
        open_group(tiny, python="/no/such/python")
    open_group(tiny, size=1).close()
