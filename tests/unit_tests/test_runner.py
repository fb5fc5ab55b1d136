"""Laws of the runner: padding at tails, declared shapes only, a warm-up that covers them and leaves nothing behind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langchain_accel.devices.base import Spec
from langchain_accel.errors import UndeclaredShape
from langchain_accel.runtime.loop import Loop
from langchain_accel.runtime.request import SamplingParams, State
from langchain_accel.runtime.runner import Lane, Runner, Work
from langchain_accel.runtime.shapes import Shape, declared
from tests.unit_tests.devices_for_tests import Ledger, Recorder, answer_of, bare_request, small_spec
from tests.unit_tests.test_shapes import specs


def lane(row: int, start: int, length: int = 1) -> Lane:
    return Lane(row, np.arange(length, dtype=np.int64), start)


@given(st.data())
def test_padding_lanes_run_at_tails_of_rows_that_are_not_in_the_batch(data: st.DataObject) -> None:
    """In the order of preference that the tails come in, one token each, and their logits are cut off.

    Mutants seen to fail: padding at column 0; padding on a row of the batch; the last spare rows instead of the first.
    """
    device = Recorder(Ledger(small_spec(rows=8, prefill_shapes=((1, 4), (4, 4)), decode_shapes=(1, 3, 8))))
    tails = data.draw(st.permutations(range(8))), data.draw(st.lists(st.integers(0, 100), min_size=8, max_size=8))
    order = [(row, tails[1][row]) for row in tails[0]]
    device.device.held = [[0] * tails[1][row] for row in range(8)]
    used = data.draw(st.lists(st.sampled_from(range(8)), min_size=1, max_size=4, unique=True))
    prefill = data.draw(st.booleans())
    lanes = [lane(row, tails[1][row], data.draw(st.integers(1, 4)) if prefill else 1) for row in used]
    runner = Runner(device)
    if prefill:
        batch = 1 if len(lanes) == 1 else 4
        logits = runner.prefill(lanes, batch, 4, lambda: order)
    else:
        batch = next(batch for batch in (1, 3, 8) if batch >= len(lanes))
        logits = runner.decode(lanes, batch, lambda: order)
    call = device.calls[-1]
    assert logits.shape == (len(lanes), 50)
    assert call.batch == batch
    assert call.rows[: len(used)] == tuple(used)
    assert call.lengths == (*(len(each.tokens) for each in lanes), *[1] * (batch - len(used)))
    expected = [(row, tail) for row, tail in order if row not in used][: batch - len(used)]
    assert list(zip(call.rows, call.starts, strict=True))[len(used) :] == expected


@pytest.mark.parametrize("attended_lens", [(), (32, 128), (4, 16, 128)])
@pytest.mark.parametrize("resumes", [True, False])
def test_warm_up_runs_every_declared_shape_and_no_other(attended_lens: tuple[int, ...], resumes: bool) -> None:
    """The device sees them as it will in serving: with as many columns filled as a shape attends.

    Mutants seen to fail: the last shape left out; every shape at column 0; filling with a shape of its own.
    """
    device = Ledger(small_spec(attended_lens=attended_lens, resumes=resumes, copies=resumes))
    runner = Runner(device)
    seen: list[tuple[str, int, int]] = []
    runner.warmup(lambda *stage: seen.append(stage))
    shapes = {shape for _, shape in declared(device.spec)}
    assert device.shapes == shapes
    assert runner.shapes == len(shapes)
    assert seen == [("warming up shapes", done, len(shapes)) for done in range(len(shapes) + 1)]


@given(specs(longest=24, most_rows=3))
@settings(deadline=None)
def test_warm_up_covers_any_spec_and_leaves_the_device_forgetful(spec: Spec) -> None:
    """Mutants seen to fail: no `forget`; `forget` for all rows but the last; counters that keep the warm-up's work."""
    device = Ledger(spec)
    runner = Runner(device)
    runner.warmup()
    assert device.shapes == {shape for _, shape in declared(spec)}
    assert device.held == [[]] * spec.rows
    assert runner.work == Work()
    assert runner.undeclared == 0


def test_an_undeclared_shape_is_refused_after_warm_up_and_counted() -> None:
    """The device never sees it.

    Mutants seen to fail: `_frozen` never set; the count left out.
    """
    device = Recorder(Ledger(small_spec()))
    runner = Runner(device)
    runner.warmup()
    device.calls.clear()
    shapes = runner.shapes
    for count in (1, 2):
        with pytest.raises(UndeclaredShape, match=r"batch=1, length=5.*decode_shapes"):
            runner.prefill([lane(0, 0, 5)], 1, 5, list)
        assert runner.undeclared == count
    with pytest.raises(UndeclaredShape):
        runner.decode([lane(0, 0), lane(1, 0), lane(2, 0)], 3, list)
    assert device.calls == []
    assert runner.shapes == shapes
    runner.prefill([lane(0, 0, 5)], 1, 8, list)
    assert runner.undeclared == 3


def test_work_counts_what_was_asked_and_what_was_run() -> None:
    """Mutants seen to fail: padding lanes counted as real tokens; padded columns not counted."""
    runner = Runner(Ledger(small_spec()))
    runner.warmup()
    order = [(3, 0), (2, 0), (1, 0), (0, 0)]
    runner.prefill([lane(0, 0, 5), lane(1, 0, 8), lane(2, 0, 7)], 4, 8, lambda: order)
    assert runner.work == Work(prefills=1, decodes=0, real_tokens=20, padded_tokens=32)
    runner.decode([lane(0, 5), lane(1, 8), lane(2, 7)], 4, lambda: [(3, 0)])
    assert runner.work == Work(prefills=1, decodes=1, real_tokens=23, padded_tokens=36)


def test_attended_length_counts_padding_lanes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device reads as many columns as its furthest lane needs.

    Mutants seen to fail: attended length of the real lanes only, in a decode and in a prefill.
    """
    runner, asked = Runner(Ledger(small_spec(attended_lens=(16, 128)))), []
    monkeypatch.setattr(runner, "_run", lambda shape, lanes: asked.append(shape) or np.zeros((shape.batch, 50)))
    lanes, tails = [lane(0, 3), lane(1, 3), lane(2, 3)], [(3, 60)]
    runner.decode(lanes, 4, lambda: tails)
    runner.prefill(lanes, 4, 8, lambda: tails)
    runner.prefill(lanes, 4, 8, lambda: [(3, 15)])
    assert asked == [Shape("decode", 4, 1, 128), Shape("prefill", 4, 8, 128), Shape("prefill", 4, 8, 16)]


@given(st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_loop_on_any_declared_spec_answers_as_if_each_request_were_alone(data: st.DataObject) -> None:
    """Nothing undeclared runs, whatever arrives and leaves in whatever order, and every row comes back.

    Mutants seen to fail: padding at column 0; a prefix reused one token too far; attended lengths below the prefill
    length not declared; an aborted request that keeps its row; a row given back as remembering a token more.
    """
    spec = data.draw(specs(longest=100, most_rows=4))
    device = Ledger(spec)
    loop = Loop(device)
    loop.runner.warmup()
    longest = spec.max_prompt
    requests = []
    for _ in range(data.draw(st.integers(1, 10))):
        length = data.draw(st.integers(1, longest))
        start = data.draw(st.integers(0, length))
        prompt = [
            *range(start),
            *data.draw(st.lists(st.integers(0, 49), min_size=length - start, max_size=length - start)),
        ]
        params = SamplingParams(max_tokens=data.draw(st.integers(1, max(1, min(12, spec.max_len - length)))))
        requests.append(bare_request([token % 50 for token in prompt], params, vocab_size=50))
        loop.waiting.append(requests[-1])
        for _ in range(data.draw(st.integers(0, 6))):
            loop.step()
        if data.draw(st.booleans()) and data.draw(st.booleans()):
            data.draw(st.sampled_from(requests)).aborted = True
    for _ in range(10_000):
        if not loop.busy:
            break
        loop.step()
    assert not loop.busy
    assert loop.runner.undeclared == 0
    assert loop._rows.idle == spec.rows
    for request in requests:
        assert request.state is State.DONE
        if not request.aborted:
            assert answer_of(request).tokens == device.answer(request.prompt.tolist(), request.limit)
