"""Sampling against transformers' logits processors, hand-written oracles and statistics."""

from __future__ import annotations

import math
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from langchain_accel.errors import AccelError, InvalidRequest
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.sampling import Choice, Sampler, choose, warp

EOS = 3


class Only:
    """A constraint that allows a fixed set of tokens, without a limit unless it is given a way to close."""

    def __init__(self, *allowed: int, refused=(), way=None, dictated=()) -> None:
        self.allowed, self.accepted, self.finished = list(allowed), [], False
        self.refused, self.way, self.dictated, self.asked = refused, way, list(dictated), []
        self.closed_early = False

    def mask(self, logits):
        kept = logits[self.allowed]
        logits[:] = -np.inf
        logits[self.allowed] = kept

    def admits(self, token):
        self.asked.append(token)
        self.closed_early |= token in self.refused
        return token not in self.refused

    def closing(self):
        return self.way

    def forced(self):
        return self.dictated

    def accept(self, token):
        self.accepted.append(token)
        if token not in self.allowed:
            msg = f"token {token} does not follow the grammar"
            raise AccelError(msg)


def sampler(*, prompt=(), stop_ids=frozenset({EOS}), vocab_size=64, constraint=None, **settings_):
    params = SamplingParams(**settings_)
    return Sampler(params, prompt, stop_ids=stop_ids, vocab_size=vocab_size, constraint=constraint)


def row(seed=0, size=64, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def answer(subject, rows):
    """Tokens a lone sampler chooses from a series of rows."""
    tokens = []
    for logits in rows:
        tokens.append(subject.choose(logits).token)
        subject.accept(tokens[-1])
    return tokens


# Few distinct values give many ties; no others are so close that only their exponentials tie.
values = st.one_of(
    st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 0.0, 1.0, 2.5]), st.integers(-12_000, 12_000).map(lambda n: n / 1000)
)
logit_rows = st.lists(values, min_size=2, max_size=40).map(lambda row_: np.array(row_, np.float32))
large_rows = st.builds(row, st.integers(0, 10**6), st.sampled_from([700, 3000]), st.sampled_from([0.0, 0.1, 1.0, 4.0]))


@settings(max_examples=300, deadline=None)
@given(
    scores=st.one_of(logit_rows, logit_rows, large_rows),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 2, 5, 50, 10_000]),
    top_p=st.one_of(st.sampled_from([1.0, 0.9, 0.5, 0.01]), st.floats(0.001, 0.999)),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
)
def test_kept_tokens_and_their_probabilities_are_those_of_transformers(scores, temperature, top_k, top_p, min_p):
    """Mutants: top-p before top-k; `count` of `_nucleus` one more or one less; `>` for `>=` in top-k or min-p."""
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    assume(np.isfinite(scores.max()))
    warpers = [process.TemperatureLogitsWarper(temperature)]
    warpers += [process.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [process.TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [process.MinPLogitsWarper(min_p)] if min_p else []
    expected = torch.from_numpy(scores.astype(np.float64))[None]
    for warper in warpers:
        if isinstance(warper, process.TopPLogitsWarper):
            # Sums that meet 1 - top_p in the last digit may fall on either side.
            sums = expected.sort().values.softmax(-1).cumsum(-1)
            assume(float((sums - (1 - top_p)).abs().min()) > 1e-9)
        if isinstance(warper, process.MinPLogitsWarper):
            shares = expected.softmax(-1) / expected.softmax(-1).max()
            assume(float((shares - min_p).abs()[shares < 1].min() if (shares < 1).any() else 1) > 1e-9)
        expected = warper(None, expected)
    probabilities = expected.softmax(-1)[0].numpy()

    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    tokens, weights = warp(scores, float(scores.max()), params)
    tokens, weights = tokens[weights > 0], weights[weights > 0]
    # Which of several tied tokens torch keeps is chance, so kept values are compared; ours are those of lower id.
    assert len(tokens) == np.count_nonzero(probabilities)
    np.testing.assert_array_equal(np.sort(scores[tokens]), np.sort(scores[probabilities > 0]))
    np.testing.assert_allclose(np.sort(weights / weights.sum()), np.sort(probabilities[probabilities > 0]), rtol=1e-9)
    for value in np.unique(scores[tokens]):
        tied = np.flatnonzero(scores == value)
        np.testing.assert_array_equal(np.intersect1d(tokens, tied), tied[: np.isin(tied, tokens).sum()])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    prompt=st.lists(st.integers(0, 63), max_size=20),
    penalty=st.floats(0.3, 3.0),
    steps=st.integers(1, 90),
)
def test_repetition_penalty_is_that_of_transformers(seed, prompt, penalty, steps):
    """Mutants: multiply where positive; the answer's tokens left out of the history; its arrays grown by nothing."""
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    oracle = process.RepetitionPenaltyLogitsProcessor(penalty)
    subject, tokens = sampler(prompt=prompt, repetition_penalty=penalty), list(prompt)
    for step in range(steps):
        logits = row(seed + step)
        if tokens:
            scores = oracle(torch.tensor([tokens]), torch.from_numpy(logits.copy())[None])[0].numpy()
            np.testing.assert_allclose(subject._process(logits), scores, rtol=1e-6)
            assert subject.choose(logits).token == int(scores.argmax())
        tokens.append(int(row(seed + step + 1, 64).argmax()))
        subject.accept(tokens[-1])


@settings(max_examples=100, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 63), max_size=10),
    output=st.lists(st.integers(0, 63), max_size=200),
    repetition=st.sampled_from([1.0, 1.3]),
    presence=st.sampled_from([0.0, 0.7, -0.5]),
    frequency=st.sampled_from([0.0, 0.3, -0.2]),
    bias=st.dictionaries(st.integers(0, 63), st.floats(-50, 50), max_size=5),
)
def test_all_penalties_and_bias_follow_their_definitions(*, prompt, output, repetition, presence, frequency, bias):
    """Mutants: presence penalty per occurrence; penalties that read the prompt; bias before the penalties."""
    subject = sampler(
        prompt=prompt,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
    )
    for token in output:
        subject.accept(token)
    logits = row(len(output))
    expected = logits.astype(np.float64)
    for token in range(64):
        if token in prompt or token in output:
            expected[token] *= repetition if expected[token] < 0 else 1 / repetition
        expected[token] -= frequency * output.count(token) + presence * (token in output)
        expected[token] += bias.get(token, 0.0)
    got = subject._process(logits) if subject._processed else logits
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "settings_",
    [
        {"temperature": 1.0},
        {"temperature": 0.6, "top_k": 6},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 12, "top_p": 0.95, "min_p": 0.1},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(settings_):
    """Mutants: `searchsorted` over the unsorted weights; random() squared; top-p's ids taken by rank."""
    logits, draws = row(5, size=30, scale=1.5), 20_000
    subject = sampler(seed=7, vocab_size=30, **settings_)
    counts = np.bincount(answer(subject, [logits] * draws), minlength=30)
    tokens, weights = warp(logits, float(logits.max()), SamplingParams(**settings_))
    expected = np.zeros(30)
    expected[tokens] = draws * weights / weights.sum()
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    freedom = kept.sum() - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)  # five standard deviations of chi-square


def test_a_seeded_answer_does_not_depend_on_the_batch():
    """Mutant: one generator for all samplers."""
    make = lambda seed: sampler(seed=seed, temperature=0.9, top_p=0.9, vocab_size=500)
    rows = [row(step, 500) for step in range(40)]
    alone = answer(make(11), rows)
    assert alone == answer(make(11), rows)
    assert alone != answer(make(12), rows)
    subject, crowd = make(11), [make(None), sampler(vocab_size=500), make(5)]
    together = []
    for step, logits in enumerate(rows):
        place = step % (len(crowd) + 1)
        batch = [*crowd[:place], subject, *crowd[place:]][: 1 + max(place, step % 4)]
        stack = np.stack([logits if each is subject else row(step + 100, 500) for each in batch])
        together.append(choose(stack, batch)[place].token)
    assert together == alone


def test_unseeded_answers_differ():
    rows = [row(step, 500, 0.5) for step in range(20)]
    assert answer(sampler(temperature=1.0, vocab_size=500), rows) != answer(
        sampler(temperature=1.0, vocab_size=500), rows
    )


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 8), seed=st.integers(0, 1000), picks=st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_a_batch_chooses_what_each_row_would_alone(rows, seed, picks):
    """Mutants: the batch argmax read at the row's place among plain rows; `accept` forgotten for plain rows."""
    make = [
        sampler,
        lambda: sampler(repetition_penalty=1.5, prompt=[1, 2]),
        lambda: sampler(temperature=0.8, seed=3),
        lambda: sampler(min_tokens=2, logprobs=1),
    ]
    together, alone = ([make[picks[place]]() for place in range(rows)] for _ in range(2))
    for step in range(4):
        logits = np.stack([row(seed + 10 * step + place) for place in range(rows)])
        before = logits.copy()
        expected = [each.choose(logits[place]) for place, each in enumerate(alone)]
        for each, choice in zip(alone, expected, strict=True):
            each.accept(choice.token)
        assert choose(logits, together) == expected
        np.testing.assert_array_equal(logits, before)


def test_plain_is_greedy_without_anything_else():
    assert sampler().plain
    for settings_ in ({"temperature": 0.5}, {"logprobs": 0}, {"presence_penalty": 0.1}, {"logit_bias": {1: 1.0}}):
        assert not sampler(**settings_).plain
    assert not sampler(constraint=Only(1)).plain


def test_min_tokens_forbids_stopping_and_then_is_plain_again():
    """Mutants: `<=` for `<`; `stop_token_ids` not masked; a sampler that is never plain again."""
    logits = row()
    logits[[EOS, 9]] = 50, 40
    subject = sampler(min_tokens=2, stop_token_ids=(9,))
    assert subject.stop_ids == {EOS, 9}
    assert not subject.plain
    tokens = answer(subject, [logits] * 3)
    assert not {EOS, 9} & set(tokens[:2])
    assert tokens[2] == EOS
    assert subject.plain
    assert sampler(min_tokens=5, stop_ids=frozenset()).plain  # nothing to forbid


def test_ignored_end_of_sequence_is_an_ordinary_token():
    """The engine leaves the model's ids out of `stop_ids` then. Mutant: a sampler that masks id 3 all the same."""
    logits = row()
    logits[EOS] = 50
    subject = sampler(ignore_eos=True, stop_ids=frozenset(), min_tokens=4)
    assert answer(subject, [logits] * 2) == [EOS, EOS]


def test_bias_forces_and_forbids():
    logits = row()
    best = int(logits.argmax())
    assert sampler(logit_bias={17: 100.0}).choose(logits).token == 17
    assert sampler(logit_bias={best: -math.inf}).choose(logits).token == int(np.argsort(logits)[-2])


def test_a_constraint_masks_first_and_advances():
    """Mutants: mask after the bias was added (17 is chosen); `accept` not passed on."""
    constraint = Only(5, 6)
    subject = sampler(constraint=constraint, logit_bias={17: 1000.0}, temperature=0.7, seed=1)
    tokens = answer(subject, [row(step) for step in range(30)])
    assert set(tokens) == {5, 6}
    assert constraint.accepted == tokens
    assert not subject.finished
    constraint.finished = True
    assert subject.finished
    assert not sampler().finished


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_constraint_refuses_is_chosen_again_and_at_last_by_the_constraint(temperature):
    """Mutants: the refused token returned; it stays among the candidates; tries without an end; TRIES one more."""
    logits, tokens = row(), range(10, 20)
    best = sorted(tokens, key=lambda token: -logits[token])
    constraint = Only(*tokens, refused=best[:3], way=50)
    assert sampler(constraint=constraint, temperature=temperature, seed=1).choose(logits).token not in best[:3]
    if not temperature:
        assert constraint.asked == best[:4]
    constraint = Only(*tokens, refused=tokens, way=50)
    subject = sampler(constraint=constraint, temperature=temperature, seed=1)
    assert not subject.closed_early
    assert subject.choose(logits).token == 50
    assert subject.closed_early
    assert len(set(constraint.asked)) == len(constraint.asked) == 4


def test_a_constraint_that_must_close_wins_over_min_tokens_and_bias():
    """Mutants: `_require_usable` before; closing although the model's own logits are no numbers."""
    for settings_ in ({"min_tokens": 9}, {"logit_bias": {EOS: -math.inf}}):
        assert sampler(constraint=Only(EOS, way=EOS), **settings_).choose(row()).token == EOS
        with pytest.raises(InvalidRequest, match="forbid every token"):
            sampler(constraint=Only(EOS), **settings_).choose(row())
        with pytest.raises(AccelError, match="not a finite number"):
            sampler(constraint=Only(EOS, way=EOS), **settings_).choose(np.full(64, -np.inf, np.float32))


def test_forced_tokens_are_those_of_the_constraint_up_to_a_stop_id():
    """Mutants: given although log-probabilities are asked for; a stop id among them."""
    constraint = Only(5, dictated=[5, 6, EOS, 7])
    assert sampler(constraint=constraint).forced() == [5, 6]
    assert sampler(constraint=constraint, stop_token_ids=(6,)).forced() == [5]
    assert sampler(constraint=constraint, logprobs=0).forced() == sampler().forced() == []


def test_an_error_concerns_its_row_alone():
    """Mutants: the error raised out of `choose`; rows after it not accepted."""
    logits = np.stack([row(place) for place in range(4)])
    logits[2, 5] = np.nan
    batch = [sampler(), sampler(constraint=Only(EOS), min_tokens=1), sampler(), sampler(presence_penalty=1.0)]
    first, second, third, fourth = choose(logits, batch)
    assert first == Choice(int(logits[0].argmax()))
    assert isinstance(second, InvalidRequest)
    assert "min_tokens" in str(second)
    assert isinstance(third, AccelError)
    assert not isinstance(third, InvalidRequest)
    assert isinstance(fourth, Choice)
    assert len(batch[3]._history.seen()[0]) == 1


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("settings_", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}, {"logprobs": 2}])
def test_logits_that_are_no_numbers_are_an_error(broken, settings_):
    """Mutant: no `_require_usable`."""
    logits = row()
    logits[40] = broken
    with pytest.raises(AccelError, match="not a finite number"):
        sampler(**settings_).choose(logits)
    with pytest.raises(AccelError, match="not a finite number"):
        sampler(**settings_).choose(np.full(64, -np.inf, np.float32))


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"logit_bias": {64: 1.0}}, "logit_bias"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"logit_bias": {1: math.nan}}, "logit_bias"),
        ({"logit_bias": MappingProxyType({1: math.inf})}, "logit_bias"),
        ({"stop_token_ids": (64,)}, "stop_token_ids"),
        ({"prompt": [70], "repetition_penalty": 2.0}, "prompt"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(settings_, words):
    """Mutant: no `_check_ids`; numpy would take -1 for the last token."""
    with pytest.raises(InvalidRequest, match=words):
        sampler(**settings_)


@settings(max_examples=100, deadline=None)
@given(logits=logit_rows, count=st.integers(0, 45), data=st.data())
def test_logprobs_are_those_of_the_raw_distribution(logits, count, data):
    """Mutants: of the processed scores; base 2; ties by higher id; `count` alternatives beside the chosen one."""
    torch = pytest.importorskip("torch")
    assume(np.isfinite(logits.max()))
    size = len(logits)
    favoured = data.draw(st.integers(0, size - 1))
    assume(np.isfinite(logits[favoured]))
    subject = sampler(vocab_size=size, stop_ids=frozenset(), logprobs=count, logit_bias={favoured: 60.0})
    choice = subject.choose(logits)
    expected = torch.log_softmax(torch.from_numpy(logits.astype(np.float64)), -1).numpy()
    assert choice.token == choice.logprob.token == favoured
    assert choice.logprob.logprob == pytest.approx(expected[favoured], abs=1e-9)
    order = sorted(range(size), key=lambda token: (-logits[token], token))[:count]
    assert [token for token, _ in choice.logprob.top] == order
    np.testing.assert_allclose([value for _, value in choice.logprob.top], expected[order], atol=1e-9)


def test_extreme_temperatures_neither_overflow_nor_fail():
    logits = row()
    best = int(logits.argmax())
    assert sampler(temperature=1e-320).choose(logits).token == best
    assert len(set(answer(sampler(temperature=1e300, seed=0), [logits] * 500))) > 50
