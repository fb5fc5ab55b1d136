"""Drafts by prompt lookup: what is proposed, when it is checked, and that the answer never changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_accel.devices.base import Spec
from langchain_accel.runtime.checkpoint import Checkpoint, open_checkpoint
from langchain_accel.runtime.constraints import Grammar
from langchain_accel.runtime.drafts import FIRST, LONGEST, PAUSE, SHORTEST, Drafter, lookup
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.shapes import MAX_DRAFT_TOKENS, MAX_DRAFT_WASTE, fit_verify, verify_shapes
from tests.unit_tests.devices_for_tests import Recorder, on_reference

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def agreement(known: list[int], end: int) -> int:
    """How many tokens before `end` equal the last ones of `known`."""
    count = 0
    while count < LONGEST and count < end and known[end - 1 - count] == known[-1 - count]:
        count += 1
    return count


@given(known=tokens, most=st.integers(1, 8))
def test_a_draft_is_what_followed_the_longest_agreement(known: list[int], most: int) -> None:
    """Mutant seen to fail: the latest place, however short its agreement."""
    best = max((agreement(known, end) for end in range(1, len(known))), default=0)
    draft = lookup(np.array(known), most).tolist()
    if best < SHORTEST:
        assert draft == []
        return
    places = [end for end in range(1, len(known)) if agreement(known, end) == best]
    roomy = [end for end in places if end + most <= len(known)]
    place = roomy[-1] if roomy else places[0]
    assert draft == known[place : place + most]
    assert draft


def test_right_drafts_grow_and_wrong_ones_pause() -> None:
    prompt = np.arange(100)
    drafter = Drafter(prompt, 200, 15)
    output = [3, 4, 5]
    lengths = []
    for _ in range(4):
        draft = drafter.propose(output).tolist()
        lengths.append(len(draft))
        assert draft == list(range(output[-1] + 1, output[-1] + 1 + len(draft)))
        output += draft
        drafter.learn(len(draft), len(draft), len(output))
    assert lengths == [FIRST, 7, 15, 15]
    silences = []
    for _ in range(8):
        drafter.learn(FIRST, 0, len(output))
        before = len(output)
        while not len(drafter.propose(output)):
            output.append(output[-1] + 1 if output[-1] < 60 else 3)
        silences.append(len(output) - before)
    assert silences[:3] == sorted(silences[:3])
    assert max(silences) >= PAUSE


def test_no_draft_goes_past_the_end_of_the_answer() -> None:
    """Mutant seen to fail: room for one token too many."""
    drafter = Drafter(np.array([1, 2, 3, 4, 5, 6, 7]), 5, 15)
    assert drafter.propose([1, 2, 3]).tolist() == [4]
    assert drafter.propose([1, 2, 3, 4]).tolist() == []


def spec(**changes: Any) -> Spec:
    given = {"rows": 8, "max_len": 64, "vocab_size": 9, "prefill_shapes": ((1, 64),), "decode_shapes": (1, 2, 4, 8)}
    return Spec(**{**given, "drafts": 16, **changes})


@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=8), drafts=st.integers(0, 20))
def test_a_verify_step_is_declared_and_worth_running(lengths: list[int], drafts: int) -> None:
    """Mutant seen to fail: the waste not looked at."""
    declared, lengths = spec(drafts=drafts), [min(length, max(drafts, 1)) for length in lengths]
    length = fit_verify(declared, lengths)
    if max(lengths) == 1 or drafts < 2:
        assert length is None
    if length is None:
        return
    batch = next(batch for batch in declared.decode_shapes if batch >= len(lengths))
    assert (batch, length) in verify_shapes(declared)
    assert 1 < length <= drafts
    assert batch * length <= MAX_DRAFT_TOKENS
    assert batch * length <= MAX_DRAFT_WASTE * sum(min(tokens, length) for tokens in lengths)
    assert not any(max(lengths) <= shorter < length for same, shorter in verify_shapes(declared) if same == batch)


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return open_checkpoint(tiny)


@pytest.fixture(scope="module")
def engines(tiny: Path, checkpoint: Checkpoint) -> Iterator[tuple[Engine, Recorder, Engine]]:
    """An engine that drafts, its device, and one that does not."""
    with (
        on_reference(tiny, checkpoint.tokenizer, checkpoint.eos_ids, wrap=Recorder, drafts=8) as (drafting, device),
        on_reference(tiny, checkpoint.tokenizer, checkpoint.eos_ids, rows=1, drafts=0) as (plain, _),
    ):
        yield drafting, device, plain


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.4, "seed": 5},
    "log-probabilities": {"logprobs": 2},
    "penalised": {"frequency_penalty": 0.02, "temperature": 0.3, "seed": 3},
    "stopped": {"stop": ("zz",), "min_tokens": 20},
}


@pytest.mark.parametrize("way", WAYS)
def test_drafts_never_change_an_answer(engines: tuple[Engine, Recorder, Engine], way: str) -> None:
    """Mutants seen to fail: drafts taken unseen; keys of rejected drafts counted as written."""
    drafting, _, plain = engines
    before = drafting.stats()
    for seed in range(4):
        prompt = np.random.default_rng(seed).integers(8, 200, 12).tolist() * 4
        params = SamplingParams(max_tokens=80, ignore_eos=True, **WAYS[way])
        drafted, alone = drafting.submit(prompt, params).result(), plain.submit(prompt, params).result()
        assert (drafted.text, drafted.tokens) == (alone.text, alone.tokens)
        assert [one.token for one in drafted.logprobs] == [one.token for one in alone.logprobs]
        assert [one.logprob for one in drafted.logprobs] == pytest.approx([one.logprob for one in alone.logprobs])
    after = drafting.stats()
    assert after.accepted_tokens > before.accepted_tokens, "some drafts were right"
    assert after.drafted_tokens - before.drafted_tokens > after.accepted_tokens - before.accepted_tokens, (
        "some were not"
    )
    assert after.undeclared_shapes == 0


def test_a_grammar_binds_drafted_answers(engines: tuple[Engine, Recorder, Engine]) -> None:
    drafting, _, plain = engines
    params = SamplingParams(max_tokens=60)
    grammar = Grammar.regex("(ab|cd|ef){10,20}")
    prompt = list(range(20, 40))
    drafted = drafting.submit(prompt, params, grammar).result()
    assert drafted.text == plain.submit(prompt, params, grammar).result().text


def test_right_drafts_save_steps_and_none_are_made_where_none_are_wanted(
    engines: tuple[Engine, Recorder, Engine],
) -> None:
    """Mutant seen to fail: `prompt_lookup` ignored."""
    drafting, device, _ = engines
    steps = {}
    for wanted in (True, False):
        before = drafting.stats()
        device.calls.clear()
        for seed in range(4):
            prompt = np.random.default_rng(seed).integers(8, 200, 12).tolist() * 4
            drafting.submit(prompt, SamplingParams(max_tokens=80, ignore_eos=True, prompt_lookup=wanted)).result()
        after = drafting.stats()
        steps[wanted] = after.decode_steps - before.decode_steps
        saved = after.accepted_tokens - before.accepted_tokens
        assert steps[wanted] + saved == 4 * (80 - 1), "the first token comes from the prefill"
        assert any(call.kind == "verify" for call in device.calls) == wanted
    assert steps[True] < steps[False]
