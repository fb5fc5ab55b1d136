"""Laws of the declared shapes: which one a step runs in, and which ones there are."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from langchain_accel.devices.base import Spec
from langchain_accel.errors import PlanRejected
from langchain_accel.runtime.shapes import MAX_WASTE, declared, fit_decode, fit_prefill
from tests.unit_tests.devices_for_tests import small_spec


@st.composite
def specs(draw: st.DrawFn, *, longest: int = 64, most_rows: int = 6) -> Spec:
    """Any spec that a device may declare."""
    rows, max_len = draw(st.integers(1, most_rows)), draw(st.integers(2, longest))
    shape = st.tuples(st.integers(1, rows), st.integers(1, max_len))
    prefills = draw(st.sets(shape, max_size=6)) | {(1, draw(st.integers(1, max_len)))}
    attended = draw(st.none() | st.sets(st.integers(1, max_len), max_size=4))
    resumes = draw(st.booleans())
    return Spec(
        rows=rows,
        max_len=max_len,
        vocab_size=50,
        prefill_shapes=tuple(sorted(prefills)),
        decode_shapes=tuple(sorted(draw(st.sets(st.integers(1, rows), max_size=3)) | {rows})),
        attended_lens=() if attended is None else tuple(sorted(attended | {max_len})),
        resumes=resumes,
        copies=resumes and draw(st.booleans()),
    )


@st.composite
def batched_specs(draw: st.DrawFn) -> Spec:
    """Specs with prefills for several rows, as a device would declare them."""
    rows = draw(st.integers(2, 6))
    shape = st.tuples(st.sampled_from(range(2, rows + 1)), st.sampled_from([4, 8, 12, 16]))
    single = draw(st.sampled_from([(4, 8, 16), (16,), (8, 12), (4,)]))
    resumes = draw(st.booleans())
    return Spec(
        rows=rows,
        max_len=64,
        vocab_size=50,
        prefill_shapes=tuple(sorted({(1, length) for length in single} | draw(st.sets(shape, min_size=1, max_size=4)))),
        decode_shapes=(rows,),
        resumes=resumes,
    )


@st.composite
def queues(draw: st.DrawFn) -> tuple[Spec, list[int], int]:
    """A spec, the tokens that requests on its rows have left to prefill, and the rows free for padding."""
    spec = draw(st.one_of(specs(), batched_specs()))
    tokens = st.integers(1, spec.max_prompt)
    near = st.sampled_from(
        [max(1, min(length - short, spec.max_prompt)) for _, length in spec.prefill_shapes for short in (0, 1)]
    )
    remaining = draw(st.lists(near | tokens, min_size=1, max_size=spec.rows))
    return spec, remaining, spec.rows if spec.resumes else draw(st.integers(0, spec.rows - len(remaining)))


@given(queues())
def test_the_first_request_always_gets_its_full_chunk(queue: tuple[Spec, list[int], int]) -> None:
    """In the smallest shape if it is alone.

    Mutants seen to fail: `length < first` left out; the chunk taken from shapes of any batch.
    """
    spec, remaining, spare = queue
    fit = fit_prefill(spec, remaining, spare)
    assert (fit.batch, fit.length) in spec.prefill_shapes, "nothing undeclared"
    assert fit.length >= min(remaining[0], spec.chunk)
    if fit.count == 1:
        lengths = [length for batch, length in spec.prefill_shapes if batch == 1]
        assert fit.batch == 1
        assert fit.length == min((each for each in lengths if each >= remaining[0]), default=max(lengths))


def without_resumes(*prefill_shapes: tuple[int, int]) -> Spec:
    return small_spec(prefill_shapes=prefill_shapes, attended_lens=(), resumes=False, copies=False)


@given(queues())
@example((without_resumes((1, 8), (4, 8)), [8, 8, 8], 0))
@example((without_resumes((1, 8), (1, 16), (2, 8)), [8, 16], 2))
def test_prompts_share_a_prefill_exactly_where_that_computes_more_without_waste(
    queue: tuple[Spec, list[int], int],
) -> None:
    """Mutants seen to fail: waste up to 3 times; padding lanes not counted against spare rows; a prompt cut in two
    on a device that cannot resume; the last fitting shape instead of the best."""
    spec, remaining, spare = queue
    fit = fit_prefill(spec, remaining, spare)
    first = min(remaining[0], spec.chunk)
    possible = {first: 1}
    for batch, length in spec.prefill_shapes:
        lanes = remaining[:batch]
        real = sum(min(tokens, length) for tokens in lanes)
        whole = spec.resumes or all(tokens <= length for tokens in lanes)
        padded = batch - len(lanes) <= spare
        if length >= first and len(lanes) > 1 and batch * length <= MAX_WASTE * real and whole and padded:
            possible[real] = len(lanes)
    taken = remaining[: fit.count]
    assert sum(min(tokens, fit.length) for tokens in taken) == max(possible)
    if fit.count > 1:
        assert fit.batch * fit.length <= MAX_WASTE * max(possible)
        assert fit.batch - fit.count <= spare
        assert spec.resumes or max(taken) <= fit.length


@given(specs(), st.data())
def test_a_decode_runs_in_the_smallest_declared_batch(spec: Spec, data: st.DataObject) -> None:
    """Mutant seen to fail: `batch > count`."""
    count = data.draw(st.integers(1, spec.rows))
    batch = fit_decode(spec, count)
    assert batch in spec.decode_shapes
    assert batch >= count
    assert not [smaller for smaller in spec.decode_shapes if count <= smaller < batch]


def reachable(spec: Spec) -> set[tuple[str, int, int, int]]:
    """Every shape that serving can ask for, by trying all prompts at all columns."""
    found = set()
    for batch in spec.decode_shapes:
        found |= {("decode", batch, 1, spec.attended(position + 1)) for position in range(1, spec.max_len)}
    for count in range(1, spec.rows + 1):
        spares = [spec.rows] if spec.resumes else range(spec.rows - count + 1)
        for *remaining, spare in product(*[range(1, spec.max_prompt + 1)] * count, spares):
            fit = fit_prefill(spec, remaining, spare)
            taken = remaining[: fit.count]
            shortest = max(min(tokens, fit.length) for tokens in taken)
            # A prompt leaves a column for its answer; a padding lane writes even there.
            longest = spec.max_len - (fit.batch == fit.count) if spec.resumes else shortest
            found |= {("prefill", fit.batch, fit.length, spec.attended(end)) for end in range(shortest, longest + 1)}
    return found


@given(specs(longest=7, most_rows=3))
def test_every_shape_that_serving_can_ask_for_is_declared(spec: Spec) -> None:
    """Also where attended lengths are finer than prefill lengths.

    Mutants seen to fail: attended lengths below the prefill length left out; those above it left out on a device that
    resumes; `_least` one too high.
    """
    assert reachable(spec) <= {tuple(shape) for _, shape in declared(spec)}


@pytest.mark.parametrize(
    "changes",
    [
        {"attended_lens": ()},
        {"attended_lens": (), "resumes": False, "copies": False},
        {"attended_lens": (4, 8, 12)},
        {"attended_lens": (4, 12), "resumes": False, "copies": False},
        {"prefill_shapes": ((1, 8), (2, 8)), "attended_lens": (2, 4, 6, 8, 12)},
        {"prefill_shapes": ((1, 8),), "attended_lens": (3, 12), "resumes": False, "copies": False},
        {"prefill_shapes": ((1, 10),), "decode_shapes": (2,), "attended_lens": (12,)},
    ],
)
def test_no_shape_is_declared_that_serving_cannot_ask_for(changes: dict[str, object]) -> None:
    """A shape more is a minute more of warm-up on some devices.

    Mutants seen to fail: on a device that cannot resume, attended lengths past the prefill length; `_least` of 1.
    """
    spec = small_spec(
        **{"rows": 2, "max_len": 12, "prefill_shapes": ((1, 4), (1, 8), (2, 4)), "decode_shapes": (1, 2), **changes}
    )
    shapes = [tuple(shape) for _, shape in declared(spec)]
    assert len(set(shapes)) == len(shapes)
    assert set(shapes) == reachable(spec)


@given(specs())
def test_warm_up_starts_ascend_and_each_attends_what_its_shape_says(spec: Spec) -> None:
    """Mutant seen to fail: a start one column late."""
    starts = [start for start, _ in declared(spec)]
    assert starts == sorted(starts)
    for start, shape in declared(spec):
        assert spec.resumes or shape.kind == "decode" or start == 0
        if spec.attended_lens:
            most = min(start + shape.length, spec.max_len)
            assert spec.attended(start + 1) <= shape.attended <= spec.attended(most)


@pytest.mark.parametrize(
    "changes",
    [
        {"prefill_shapes": ()},
        {"prefill_shapes": ((2, 8), (1, 8))},
        {"prefill_shapes": ((2, 8),)},
        {"prefill_shapes": ((1, 8), (5, 8))},
        {"decode_shapes": ()},
        {"decode_shapes": (1, 2)},
        {"decode_shapes": (2, 1, 4)},
        {"attended_lens": (32,)},
        {"attended_lens": (64, 32, 128)},
    ],
)
def test_a_spec_that_no_scheduler_could_serve_is_refused(changes: dict[str, object]) -> None:
    """Mutant seen to fail: `__post_init__` without the check of the case."""
    with pytest.raises(PlanRejected):
        small_spec(**changes)
