"""The counters: what they count, and that reading them disturbs nobody."""

from __future__ import annotations

import dataclasses

import pytest

from langchain_accel.runtime.request import Finish, SamplingParams
from langchain_accel.runtime.stats import Meter
from tests.unit_tests.devices_for_tests import GUARD, Failing, Gate, ledger_engine

pytestmark = pytest.mark.timeout(60)


def finish(seconds: float) -> Finish:
    return Finish("length", None, 10, 5, 4, 0.0, seconds, seconds)


def test_percentiles_of_nothing_and_of_one_are_defined() -> None:
    """Mutant seen to fail: `quantiles` of fewer than two values."""
    meter = Meter()
    assert meter.first_token_percentiles() == (0.0, 0.0)
    meter.finish(finish(0.25))
    assert meter.first_token_percentiles() == (0.25, 0.25)


def test_percentiles_are_the_median_and_the_95th() -> None:
    """Mutants seen to fail: the cut before; the exclusive method."""
    meter = Meter()
    for hundredths in range(101):
        meter.finish(finish(hundredths / 100))
    assert meter.first_token_percentiles() == pytest.approx((0.5, 0.95))


def test_only_the_last_1024_first_tokens_are_remembered() -> None:
    """An engine that runs for months holds no list of months.

    Mutant seen to fail: a deque without `maxlen`.
    """
    meter = Meter()
    for _ in range(1024):
        meter.finish(finish(9.0))
    for _ in range(1024):
        meter.finish(finish(1.0))
    assert meter.first_token_percentiles() == (1.0, 1.0)
    assert meter.finished == 2048


def test_an_engine_counts_what_it_did() -> None:
    """Mutants seen to fail: tokens counted as requests; reuse not counted; waste the other way round."""
    engine, device = ledger_engine(Failing)
    try:
        before = engine.stats()
        zeros = {field.name for field in dataclasses.fields(before)} - {"rows", "shapes"}
        assert {name: getattr(before, name) for name in zeros} == dict.fromkeys(zeros, 0)
        prompt = list(range(20))
        engine.submit(prompt, SamplingParams(max_tokens=5)).result()
        engine.submit(prompt, SamplingParams(max_tokens=3)).result()
        device.fail_once(RuntimeError("broken"), "decode")
        with pytest.raises(RuntimeError):
            engine.submit([1, 2, 3], SamplingParams(max_tokens=3)).result()
        after = engine.stats()
        assert (after.rows, after.running, after.queued) == (4, 0, 0)
        assert (after.finished, after.aborted, after.failed) == (2, 0, 1)
        assert (after.prompt_tokens, after.reused_tokens, after.output_tokens) == (40, 19, 9)
        assert (after.prefill_steps, after.decode_steps) == (3, 4 + 2 + 1)
        assert after.real_tokens == 20 + 1 + 3 + 7
        assert after.padded_tokens == 32 + 8 + 8 + 7
        assert after.padding_waste == after.padded_tokens / after.real_tokens
        assert after.shapes == before.shapes > 0
        assert after.undeclared_shapes == 0
        assert after.busy_seconds > 0
        assert after.output_tokens_per_second == pytest.approx(9 / after.busy_seconds)
        assert 0 < after.first_token_p50 <= after.first_token_p95
    finally:
        engine.close()


def test_running_and_queued_are_seen_while_they_last() -> None:
    """Mutants seen to fail: arrivals the engine has not yet looked at left out; requests with a row left out."""
    engine, device = ledger_engine(Gate, rows=2, prefill_shapes=((1, 8),), decode_shapes=(2,))
    try:
        device.shut()
        streams = [engine.submit([5], SamplingParams(max_tokens=2))]
        device.wait_for_step()
        streams += [engine.submit([5], SamplingParams(max_tokens=2)) for _ in range(4)]
        assert (engine.stats().running, engine.stats().queued) == (1, 4)
        device.open()
        for stream in streams:
            stream.result()
        assert (engine.stats().running, engine.stats().queued) == (0, 0)
    finally:
        device.open()
        engine.close()


def test_stats_of_a_closed_engine_are_at_rest() -> None:
    """Mutant seen to fail: requests that were given up stay listed as running."""
    engine, device = ledger_engine(Gate, rows=2, prefill_shapes=((1, 8),), decode_shapes=(2,))
    device.shut()
    streams = [engine.submit([5]) for _ in range(5)]
    device.wait_for_step()
    engine.close(wait=False)
    device.open()
    engine.close()
    engine._thread.join(GUARD)
    assert (engine.stats().running, engine.stats().queued) == (0, 0)
    del streams
