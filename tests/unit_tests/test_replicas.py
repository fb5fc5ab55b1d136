"""Laws of replicas: every request goes to one engine, a lost one is loaded again beside the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import fields

import pytest

from langchain_accel.errors import DeviceLost, EngineClosed, PlanRejected, QueueFull
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.replicas import Replicas
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.stats import Stats, summed
from tests.unit_tests.devices_for_tests import GUARD, Failing, Ledger, ledger_engine, small_spec

pytestmark = pytest.mark.timeout(60)

FEW = SamplingParams(max_tokens=4)
FAMILIES = {"a": list(range(1, 41)), "b": list(range(49, 9, -1))}


class Loads:
    """Loads replicas on devices that compute nothing."""

    def __init__(self, **changes: int) -> None:
        self.changes = changes
        self.devices: list[Failing] = []
        self.asked: list[int] = []
        self.lost: list[int] = []
        self.error: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, index: int) -> Engine:
        self.asked.append(index)
        assert self.gate.wait(GUARD)
        if self.error is not None and len(self.devices) > 1:
            raise self.error
        engine, device = ledger_engine(Failing, **self.changes)
        self.devices.append(device)
        return engine

    def note(self, index: int, engine: Engine) -> None:
        assert engine.lost is not None
        self.lost.append(index)


def open_replicas(size: int = 2, **changes: int) -> tuple[Replicas, Loads]:
    loads = Loads(**changes)
    return Replicas(loads, size, loads.note), loads


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def lose(replicas: Replicas, loads: Loads, index: int) -> None:
    loads.devices[index].fail_once(DeviceLost("unplugged"), "decode")
    with pytest.raises(DeviceLost):
        replicas.engines[index].submit([1, 2], FEW).result()


def test_requests_are_spread_and_answered() -> None:
    """Mutant seen to fail: everything to the first."""
    replicas, loads = open_replicas()
    ledger = Ledger(small_spec())
    for device in loads.devices:
        device.shut()
    prompts = [[index + 1, 7] for index in range(8)]
    streams = [replicas.submit(prompt, FEW) for prompt in prompts]
    assert [engine.load for engine in replicas.engines] == [4, 4]
    for device in loads.devices:
        device.open()
    assert [stream.result().tokens for stream in streams] == [ledger.answer(prompt, 4) for prompt in prompts]
    stats = replicas.stats()
    assert (stats.finished, stats.rows, stats.output_tokens) == (8, 8, 32)
    assert stats.first_token_p50 > 0
    replicas.close()


def test_a_prefix_goes_where_it_is_remembered() -> None:
    """Seen in the reuse counters. The order is none that turns would hit by chance.

    Mutant seen to fail: `Prompts.shared` not asked.
    """
    replicas, _ = open_replicas()
    order = "abbaabba"
    for number, family in enumerate(order):
        replicas.submit([*FAMILIES[family], number + 1], FEW).result()
    assert [engine.stats().finished for engine in replicas.engines] == [4, 4]
    assert replicas.stats().reused_tokens == (len(order) - len(FAMILIES)) * 40
    replicas.close()


def test_a_crowd_with_one_prefix_is_spread_all_the_same() -> None:
    """Mutant to catch: affinity without a limit."""
    replicas, loads = open_replicas()
    for device in loads.devices:
        device.shut()
    streams = [replicas.submit([*FAMILIES["a"], number], FEW) for number in range(1, 17)]
    assert [engine.load for engine in replicas.engines] == [8, 8]
    for device in loads.devices:
        device.open()
    for stream in streams:
        stream.result()
    replicas.close()


def test_a_lost_replica_fails_its_own_requests_and_is_loaded_again() -> None:
    """Meanwhile the others serve. Mutants seen to fail: `closed` where one is lost; never loaded again."""
    replicas, loads = open_replicas()
    loads.gate.clear()
    lose(replicas, loads, 0)
    assert not replicas.closed
    assert replicas.lost is None
    for number in range(3):
        assert len(replicas.submit([number + 1, 2], FEW).result().tokens) == 4
    assert replicas.engines[0].closed
    assert replicas.engines[1].stats().finished == 3
    loads.gate.set()
    eventually(lambda: not replicas.engines[0].closed)
    assert (loads.asked, loads.lost) == ([0, 1, 0], [0])
    replicas.submit([9, 9], FEW).result()
    assert replicas.engines[0].stats().finished == 1, "it has nothing to do, and is chosen"
    replicas.close()
    assert [device.closed for device in loads.devices] == [1, 1, 1]


def test_a_replica_that_does_not_load_again_leaves_the_others_alone() -> None:
    """And is tried again with a later request. Mutant seen to fail: the flag left set."""
    replicas, loads = open_replicas()
    lose(replicas, loads, 1)
    loads.error = DeviceLost("still unplugged")
    replicas.submit([1], FEW).result()
    eventually(lambda: replicas._replicas[1].reloading is None)
    assert loads.asked == [0, 1, 1]
    loads.error = None
    replicas.submit([1], FEW).result()
    eventually(lambda: not replicas.engines[1].closed)
    replicas.close()


def test_when_all_are_lost_the_door_says_why() -> None:
    replicas, loads = open_replicas()
    for index in (0, 1):
        lose(replicas, loads, index)
    assert replicas.closed
    with pytest.raises(DeviceLost, match="unplugged"):
        replicas.submit([1], FEW)
    assert loads.asked == [0, 1]
    replicas.close()


def test_a_full_queue_is_passed_by() -> None:
    """Mutant seen to fail: `QueueFull` of the first choice raised."""
    replicas, loads = open_replicas(rows=1, queue_limit=1, prefill_shapes=((1, 8),), decode_shapes=(1,))  # type: ignore[arg-type]
    for device in loads.devices:
        device.shut()
    streams = [replicas.submit(FAMILIES[family][:20], FEW) for family in "aab"]
    assert [engine.load for engine in replicas.engines] == [2, 1]
    streams.append(replicas.submit(FAMILIES["a"][:20], FEW))  # the first remembers it, and is full
    assert [engine.load for engine in replicas.engines] == [2, 2]
    with pytest.raises(QueueFull, match="the queue holds 1"):
        replicas.submit([1], FEW)
    for device in loads.devices:
        device.open()
    for stream in streams:
        stream.result()
    replicas.close()


def test_closing_ends_every_replica_and_what_runs() -> None:
    replicas, loads = open_replicas(3)
    for device in loads.devices:
        device.shut()
    streams = [replicas.submit([number + 1], FEW) for number in range(3)]
    replicas.close(wait=False)
    for device in loads.devices:
        device.open()
    for stream in streams:
        with pytest.raises(EngineClosed):
            stream.result()
    replicas.close()
    replicas.close()
    assert [device.closed for device in loads.devices] == [1, 1, 1]
    with pytest.raises(EngineClosed, match="the engine is closed"):
        replicas.submit([1], FEW)


def test_a_replica_that_does_not_load_closes_those_that_did() -> None:
    """Mutant seen to fail: the others left open."""
    loads = Loads()
    loads.error = PlanRejected("too little memory")
    with pytest.raises(PlanRejected, match="too little memory"):
        Replicas(loads, 3, loads.note)
    assert [device.closed for device in loads.devices] == [1, 1]


def test_a_replica_that_is_loaded_while_all_close_is_closed() -> None:
    """Mutant seen to fail: the thread that loads not waited for."""
    replicas, loads = open_replicas()
    lose(replicas, loads, 0)
    loads.gate.clear()
    replicas.submit([1], FEW).result()
    eventually(lambda: len(loads.asked) == 3)
    replicas.close(wait=False)
    loads.gate.set()
    replicas.close()
    assert [device.closed for device in loads.devices] == [1, 1, 1]


def test_counters_are_summed_and_ratios_taken_anew() -> None:
    """Mutants seen to fail: the ratios summed; shapes summed."""
    one = Stats(**{field.name: index + 1 for index, field in enumerate(fields(Stats))})
    two = summed([one, one], [0.1, 0.3])
    assert (two.rows, two.finished, two.output_tokens) == (2 * one.rows, 2 * one.finished, 2 * one.output_tokens)
    assert two.shapes == one.shapes
    assert two.padding_waste == one.padded_tokens / one.real_tokens
    assert two.first_token_p50 == pytest.approx(0.2)
