"""Laws of the registry: one engine for each plan, shared while somebody holds it, closed when nobody does."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from langchain_accel.devices import reference
from langchain_accel.devices.base import Device, Plan
from langchain_accel.errors import DeviceLost, DeviceUnavailable, EngineClosed, ModelRejected, PlanRejected
from langchain_accel.runtime import registry
from langchain_accel.runtime.checkpoint import open_checkpoint
from langchain_accel.runtime.request import SamplingParams
from tests.unit_tests.devices_for_tests import GUARD, Failing, Ledger, Wrapper, small_spec

pytestmark = pytest.mark.timeout(120)

FEW = SamplingParams(max_tokens=3)


class Loads:
    """Replaces the reference device's `load`: instant devices, and a record of them."""

    def __init__(self) -> None:
        self.devices: list[Wrapper] = []
        self.errors: list[BaseException] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def __call__(self, plan: Plan, options: Any, rank: Any, progress: Any) -> Device:
        self.entered.release()
        assert self.gate.wait(GUARD)
        if self.errors:
            raise self.errors.pop()
        self.devices.append(Failing(Ledger(small_spec(vocab_size=320))))
        return self.devices[-1]

    @property
    def closed(self) -> list[int]:
        return [device.closed for device in self.devices]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Iterator[Loads]:
    loads, opened = Loads(), open_checkpoint(tiny)
    monkeypatch.setattr(reference, "load", loads)
    monkeypatch.setattr(registry, "open_checkpoint", lambda folder, *, trust_remote_code: opened)
    assert not registry._entries
    yield loads
    if registry._entries:
        gc.collect()
    assert not registry._entries, "a test left an engine behind"


@pytest.fixture
def plan(tiny: Path) -> Plan:
    return Plan("reference", str(tiny), options=reference.Options())


def eventually(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(GUARD * 100)):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it never came true")


def test_identical_plans_share_one_engine_and_different_plans_do_not(loads: Loads, plan: Plan) -> None:
    """Two names of one folder are one model.

    Mutants seen to fail: entries keyed by `id`; the model's path not resolved.
    """
    again = replace(plan, model=f"{plan.model}/../{Path(plan.model).name}", options=reference.Options())
    other = replace(plan, rows=3)
    leases = [registry.shared(each) for each in (plan, plan, again, other)]
    assert leases[0].engine is leases[1].engine is leases[2].engine is not leases[3].engine
    assert len(loads.devices) == 2
    for lease in leases:
        lease.close()


def test_concurrent_first_use_loads_once(loads: Loads, plan: Plan) -> None:
    """And another plan does not wait for that load.

    Mutants seen to fail: `_entries_lock` held instead of the entry's; the entry's lock left out.
    """
    loads.gate.clear()
    leases: list[registry.Lease] = []
    threads = [threading.Thread(target=lambda: leases.append(registry.shared(plan))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert loads.entered.acquire(timeout=GUARD)
    other = threading.Thread(target=lambda: leases.append(registry.shared(replace(plan, rows=3))))
    other.start()
    assert loads.entered.acquire(timeout=GUARD), "two plans load side by side"
    loads.gate.set()
    for thread in (*threads, other):
        thread.join(GUARD)
    assert len(leases) == 9
    assert len(loads.devices) == 2
    for lease in leases:
        lease.close()
    assert loads.closed == [1, 1]


def test_the_last_lease_closes_the_engine_and_waits_for_its_end(loads: Loads, plan: Plan) -> None:
    """Closing twice is closing once.

    Mutants seen to fail: the first lease closes; `close` that counts every call; no wait.
    """
    first, second = registry.shared(plan), registry.shared(plan)
    first.close()
    first.close()
    assert first.closed
    assert not second.closed
    assert len(second.engine.submit([1, 2], FEW).result().tokens) == 3
    second.close()
    assert second.closed
    assert loads.closed == [1]
    third = registry.shared(plan)
    assert not third.closed
    assert len(loads.devices) == 2
    third.close()


def test_a_lease_that_is_collected_closes_the_engine(loads: Loads, plan: Plan) -> None:
    """Mutant seen to fail: no finaliser."""
    lease = registry.shared(plan)
    engine = lease.engine
    del lease
    assert engine.closed
    eventually(lambda: loads.closed == [1])
    assert not engine._thread.is_alive() or engine._thread.join(GUARD) is None


def test_collection_in_the_middle_of_anything_does_not_deadlock(loads: Loads, plan: Plan) -> None:
    """A finaliser runs where memory is collected: here while the registry's lock is held, by this very thread, and in
    the engine's thread, which then must not wait for itself.

    Mutant seen to fail: a plain lock for the entries.
    """
    lease = registry.shared(plan)
    with registry._entries_lock:
        del lease
    eventually(lambda: loads.closed == [1])
    holder = [registry.shared(plan)]
    device = loads.devices[-1]

    def drop(call: Any) -> BaseException | None:
        holder.clear()
        return None

    engine = holder[0].engine
    device.refuse = drop  # type: ignore[attr-defined]
    stream = engine.submit([1, 2], SamplingParams(max_tokens=100))
    with pytest.raises(EngineClosed):
        stream.result()
    eventually(lambda: loads.closed == [1, 1])


def test_an_idle_engine_whose_own_thread_collects_the_last_lease_ends(loads: Loads, plan: Plan) -> None:
    """A finaliser may run in the engine's thread just before it goes to sleep: the wake-up must not be lost.

    Mutant seen to fail: a condition variable whose `notify` comes before its `wait`.
    """
    holder = [registry.shared(plan)]
    engine = holder[0].engine
    real = engine._inbox

    class Collects:
        """An inbox that collects garbage as late as possible."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def get(self) -> Any:
            if real.empty():
                holder.clear()
            return real.get()

    engine._inbox = Collects()  # type: ignore[assignment]
    engine.submit([1, 2], FEW).result()
    eventually(lambda: loads.closed == [1])
    engine._thread.join(GUARD)
    assert not engine._thread.is_alive()


def test_copies_share_the_engine_and_pickles_leave_it(loads: Loads, plan: Plan) -> None:
    """Mutants seen to fail: no `__deepcopy__`; no `__reduce__`."""
    lease = registry.shared(plan)
    assert copy.deepcopy({"lease": lease})["lease"] is lease
    assert pickle.loads(pickle.dumps({"lease": lease})) == {"lease": None}
    lease.close()


@pytest.mark.parametrize("error", [PlanRejected("too large"), MemoryError("weights"), KeyboardInterrupt()])
def test_a_load_that_fails_is_forgotten_and_can_be_tried_again(loads: Loads, plan: Plan, error: BaseException) -> None:
    """Mutants seen to fail: the entry left in the registry; only `Exception` released."""
    loads.errors.append(error)
    with pytest.raises(type(error)) as caught:
        registry.shared(plan)
    assert caught.value is error
    assert not registry._entries
    lease = registry.shared(plan)
    assert len(loads.devices) == 1
    lease.close()


def test_who_waits_for_a_load_that_fails_tries_it_himself(loads: Loads, plan: Plan) -> None:
    """Mutant seen to fail: a failed entry removed although others wait for it, so that they load one each."""
    loads.gate.clear()
    loads.errors.append(PlanRejected("at first"))
    outcomes: list[object] = []

    def ask() -> None:
        try:
            outcomes.append(registry.shared(plan))
        except PlanRejected as error:
            outcomes.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: [entry.users for entry in registry._entries.values()] == [4])
    loads.gate.set()
    for thread in threads:
        thread.join(GUARD)
    leases = [outcome for outcome in outcomes if isinstance(outcome, registry.Lease)]
    assert len(leases) == 3
    assert len(loads.devices) == 1
    for lease in leases:
        lease.close()
    assert loads.closed == [1]


def test_an_engine_that_was_lost_is_loaded_again_after_its_device_is_released(loads: Loads, plan: Plan) -> None:
    """Two devices at once might not fit.

    Mutants seen to fail: the dead engine leased; its end not waited for.
    """
    old = registry.shared(plan)
    device = loads.devices[0]
    released = threading.Event()

    def close_slowly() -> None:
        assert released.wait(GUARD)
        Wrapper.close(device)

    device.close = close_slowly  # type: ignore[method-assign]
    device.fail_once(DeviceLost("unplugged"), "prefill")  # type: ignore[attr-defined]
    with pytest.raises(DeviceLost):
        old.engine.submit([1, 2], FEW).result()
    eventually(lambda: old.closed)
    leases: list[registry.Lease] = []
    thread = threading.Thread(target=lambda: leases.append(registry.shared(plan)))
    thread.start()
    thread.join(0.1)
    assert len(loads.devices) == 1
    released.set()
    thread.join(GUARD)
    assert loads.closed == [1, 0]
    assert len(leases[0].engine.submit([1, 2], FEW).result().tokens) == 3
    old.close()
    assert not leases[0].closed
    leases[0].close()
    assert loads.closed == [1, 1]


def test_a_lease_on_a_lost_engine_does_not_keep_the_next_one(loads: Loads, plan: Plan) -> None:
    """An error's traceback may hold it for long. Mutant seen to fail: leases counted whatever their engine."""
    old = registry.shared(plan)
    loads.devices[0].fail_once(DeviceLost("unplugged"), "prefill")  # type: ignore[attr-defined]
    with pytest.raises(DeviceLost):
        old.engine.submit([1, 2], FEW).result()
    eventually(lambda: old.closed)
    new, other = registry.shared(plan), registry.shared(plan)
    new.close()
    assert loads.closed == [1, 0]
    other.close()
    assert loads.closed == [1, 1]
    last = registry.shared(plan)
    old.close()
    assert not last.closed
    last.close()
    assert loads.closed == [1, 1, 1]


def test_progress_and_options_reach_the_device(monkeypatch: pytest.MonkeyPatch, loads: Loads, plan: Plan) -> None:
    """Mutants seen to fail: default options dropped; progress not passed on."""
    seen: list[Any] = []

    def load(plan: Plan, options: Any, rank: Any, progress: Any) -> Device:
        seen.append((plan.rows, options, rank.index, rank.size))
        progress("reading", 1, 1)
        return loads(plan, options, rank, progress)

    monkeypatch.setattr(reference, "load", load)
    told: list[str] = []
    chosen = reference.Options(copies=False)
    leases = [
        registry.shared(replace(plan, options=None), lambda stage, done, total: told.append(stage)),
        registry.shared(replace(plan, options=chosen)),
    ]
    assert seen == [(8, reference.Options(), 0, 1), (8, chosen, 0, 1)]
    assert told[0] == "reading"
    assert "warming up shapes" in told
    for lease in leases:
        lease.close()


@pytest.mark.parametrize("name", ["abacus", "", "base", "memory", "../errors", "torch_rows"])
def test_a_device_that_does_not_exist_is_refused_with_those_that_do(name: str) -> None:
    """Not everything in the folder of devices is one.

    Mutant seen to fail: `find_spec` alone decides.
    """
    with pytest.raises(DeviceUnavailable, match=rf"'{name}' is not in this release .*which has xeon.*reference"):
        registry.find(name)


def test_a_known_device_of_another_release_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant seen to fail: the extra left out."""
    real = registry.find_spec
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name.endswith("gaudi") else real(name))
    with pytest.raises(DeviceUnavailable, match=r"pip install \"langchain-accel\[gaudi\]\""):
        registry.find("gaudi")
    assert registry.find("reference") == "langchain_accel.devices.reference"


def test_a_folder_without_a_model_is_refused_before_anything_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Mutant seen to fail: the device loaded first."""
    monkeypatch.setattr(reference, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ModelRejected, match=r"no config\.json"):
        registry.shared(Plan("reference", str(tmp_path)))
    assert not registry._entries


def test_a_forked_child_loads_for_itself(tiny: Path) -> None:
    """Also where another thread of the parent held the registry's lock.

    Mutant seen to fail: no `register_at_fork`.
    """
    program = f"""
        import os, sys, threading, warnings
        warnings.simplefilter("ignore")
        from langchain_accel.devices.base import Plan
        from langchain_accel.errors import EngineClosed
        from langchain_accel.runtime import registry
        from langchain_accel.runtime.request import SamplingParams

        plan = Plan("reference", {str(tiny)!r}, rows=2, max_len=32)
        few = SamplingParams(max_tokens=3, ignore_eos=True)
        lease = registry.shared(plan)
        expected = lease.engine.submit([5, 6], few).result().tokens
        held, done = threading.Event(), threading.Event()

        def hold():
            with registry._entries_lock:
                held.set()
                done.wait()

        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        child = os.fork()
        if child == 0:
            try:
                assert lease.closed
                try:
                    lease.engine.submit([5, 6], few)
                    os._exit(2)
                except EngineClosed as error:
                    assert "forked" in str(error)
                lease.engine.close()
                fresh = registry.shared(plan)
                os._exit(0 if fresh.engine.submit([5, 6], few).result().tokens == expected else 3)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(4)
        done.set()
        assert os.waitpid(child, 0)[1] == 0
        assert lease.engine.submit([5, 6], few).result().tokens == expected
        lease.close()
        print("fine")
    """
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert (ran.returncode, ran.stdout) == (0, "fine\n"), ran.stderr
