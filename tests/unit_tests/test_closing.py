"""An answer under a grammar is complete within its limit, whatever the logits."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_accel.errors import AccelError, InvalidRequest
from langchain_accel.runtime.closing import Closer
from langchain_accel.runtime.constraints import Grammar, Grammars
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.sampling import Sampler
from tests import random_grammars
from tests.schemas_of_real_shape import SCHEMAS
from tests.unit_tests.small_vocabulary import END, OTHER, TURN, WIDTH, tokenizer

jsonschema = pytest.importorskip("jsonschema")

FREE_UP_TO_A_MARKER = Grammar.lark('start: free "</think>" "[" /[a-z]/ "]"\nfree[suffix="</think>"]: /(.|\\n)*/')
GRAMMARS = {
    "pattern": Grammar.regex("[a-z]+@[a-z]+[.](com|org)"),
    "counted": Grammar.regex("(x[0-9]{4}-)*y"),
    "mail": Grammar.json_schema({"type": "string", "format": "email"}),
    "recursion": Grammar.lark('start: "a" start "b" | "c" start "d" | "e"'),
    "brackets": Grammar.lark('start: "(" start ("," start)* ")" | /[0-9]+/ | "[" start "]"'),
    "marker token": Grammar.lark(r"start: /(.|\n)*/ <[2]> " + '%json {"type":"object"}'),
    "call": Grammar.lark('start: "<call>" %json {"type":"array","items":{"type":"object"}} "</call>"'),
    "choice": Grammar.choice(["yes", "no", "no, never", "😀" * 5]),
    "free": Grammar.regex("(?s:.*)"),
}


@lru_cache
def grammars(width=WIDTH):
    return Grammars(tokenizer(), width, [END, TURN])


def shortest(grammar):
    """How many tokens the shortest answer that is known has."""
    try:
        grammars().compile(grammar, limit=0)
    except InvalidRequest as error:
        return int(re.search(r"at least (\d+) tokens, max_tokens leaves 0", str(error))[1])
    return 0


def generate(constraint, limit, seed, *, width=WIDTH, forcing=False, temperature=1.0):
    """Text of an answer to random logits, its tokens and its sampler."""
    random, tokens = np.random.default_rng(seed), []
    params = SamplingParams(temperature=temperature, seed=seed)
    sampler = Sampler(params, (), stop_ids=frozenset({END, TURN}), vocab_size=width, constraint=constraint)
    while len(tokens) < limit and not sampler.finished:
        dictated = sampler.forced() if forcing else []
        for token in dictated or [sampler.choose(random.standard_normal(width).astype(np.float32) * 3).token]:
            sampler.accept(token)
            tokens.append(token)
    assert len(tokens) <= limit
    assert constraint._matcher.is_accepting()
    return tokenizer().decode([token for token in tokens if token not in (END, TURN)]), tokens, sampler


checker = jsonschema.FormatChecker(formats=["date", "email", "ipv4", "uuid"])


@checker.checks("time")
def is_time(value):
    return bool(re.fullmatch(r"[0-2]\d(:[0-6]\d){2}([.]\d+)?([zZ]|[+-]\d\d:\d\d)", value))


def check(schema, text):
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_to_schemas_of_real_shape_are_valid_within_every_limit(name):
    """500 answers. Mutants: `admits` always true; the way after a token not checked for length; `left` never less;
    the walk returns before the grammar accepts; forced tokens not counted."""
    grammar = Grammar.json_schema(SCHEMAS[name])
    least = shortest(grammar)
    assert least <= 60
    for seed in range(10):
        limit = (96, least, least + 1, least + 7, 2 * least + 2)[seed % 5]
        text, _, _ = generate(grammars().compile(grammar, limit=limit), limit, seed, forcing=seed % 2 == 0)
        check(SCHEMAS[name], text)


@pytest.mark.parametrize("name", GRAMMARS)
def test_answers_to_every_kind_of_grammar_are_complete_within_every_limit(name):
    """Mutants: no search for an answer the walk does not find; the search without literals."""
    grammar = GRAMMARS[name]
    least = shortest(grammar)
    assert least <= 32
    for seed in range(20):
        limit = max(1, (least, least + 3, 48, 80)[seed % 4])
        constraint = grammars().compile(grammar, limit=limit)
        text, _, _ = generate(constraint, limit, seed, forcing=seed % 3 == 0, temperature=float(seed % 2))
        if grammar.kind == "regex":
            assert re.fullmatch(grammar.source, text)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), limit=st.sampled_from([8, 24, 64, 120]), of_json=st.booleans())
def test_any_grammar_is_refused_with_a_reason_or_answered_in_full(seed, limit, of_json):
    """Mutants: those above; a walk or search that does not end."""
    schema = random_grammars.schema(seed)
    try:
        grammar = Grammar.json_schema(json.dumps(schema)) if of_json else random_grammars.grammar(seed)
        constraint = grammars().compile(grammar, limit=limit)
    except InvalidRequest:
        return
    text, _, _ = generate(constraint, limit, seed, forcing=seed % 2 == 0)
    if of_json:
        with suppress(RecursionError, AttributeError):  # jsonschema's, for what refers to itself or makes no sense
            check(schema, text)
    elif grammar.kind == "regex":
        assert re.fullmatch(grammar.source, text)
    elif grammar.kind == "choice":
        assert text in json.loads(grammar.source)


def test_a_limit_below_the_shortest_answer_is_refused_with_both_numbers():
    """Mutants: `<` for `<=`; no search for a shorter answer; an endless grammar is taken, or searched forever."""
    grammar = Grammar.json_schema({"enum": ["abcdefghij"]})
    assert shortest(grammar) == 12
    with pytest.raises(InvalidRequest, match=r"at least 12 tokens, max_tokens leaves 11"):
        grammars().compile(grammar, limit=11)
    assert generate(grammars().compile(grammar, limit=12), 12, 0)[0] == '"abcdefghij"'
    assert shortest(Grammar.json_schema(SCHEMAS["uri"])) == 12  # the walk takes more
    with pytest.raises(InvalidRequest, match="no answer of at most"):
        grammars().compile(Grammar.lark('start: "a" start'), limit=1000)


def test_a_token_without_a_way_after_it_is_refused():
    """Mutants: `accept` takes it; `closed_early` set by `closing`; the law off by one."""
    bracket, digit, close, end = (tokenizer().convert_tokens_to_ids(each) for each in "[1]!")
    constraint = grammars().compile(Grammar.lark('start: "[" start "]" | "1" | "!" "!" "!"'), limit=3)
    assert constraint.admits(bracket)
    constraint.accept(bracket)
    assert constraint.closing() == digit
    assert constraint.admits(digit)
    assert not constraint.closed_early
    assert not constraint.admits(bracket)
    assert not constraint.admits(end)
    assert constraint.closed_early
    with pytest.raises(AccelError, match="within the 1 tokens left"):
        constraint.accept(bracket)
    constraint = grammars().compile(Grammar.lark('start: "[" start "]" | "1"'), limit=3)
    for token in (bracket, digit, close):
        constraint.accept(token)
    assert constraint.finished
    assert constraint.closing() == END


def test_without_a_limit_nothing_is_refused():
    constraint = grammars().compile(Grammar.json_schema(True))
    assert constraint.closing() is None
    assert constraint.admits(5)
    assert not constraint.closed_early


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SCHEMAS)), seed=st.integers(0, 10**6), limited=st.booleans())
def test_forced_tokens_are_legal_and_the_only_text_that_may_follow(name, seed, limited):
    """Mutants: what is forced where the grammar may end, too; its bytes as tokens; the mask's only token."""
    grammar, random = Grammar.json_schema(SCHEMAS[name]), np.random.default_rng(seed)
    prepared = (grammars().compile(grammar), grammars()._prepared)[1]
    limit = shortest(grammar) + seed % 9
    constraint = grammars().compile(grammar, limit=limit if limited else None)
    left = limit if limited else 150
    while left > 0 and not constraint.finished:
        tokens = constraint.forced()
        logits = np.zeros(WIDTH, np.float32)
        constraint.mask(logits)
        allowed = np.flatnonzero(logits == 0).tolist()
        text = prepared.decode_bytes(tokens)
        if tokens:
            assert not {END, TURN} & set(allowed)
            assert tokens[0] in allowed
            for each in allowed:
                begins = prepared.decode_bytes([each])
                assert begins.startswith(text) or text.startswith(begins)
        if not tokens:
            admitted = [token for token in allowed if constraint.admits(token)]
            assert constraint.closing() in admitted or not limited
            tokens = [int(random.choice(admitted))]
        for token in tokens:
            constraint.accept(token)
        left -= len(tokens)
    assert left >= 0 or not limited
    assert constraint.finished or not limited or constraint._matcher.is_accepting()
    if constraint.finished:
        assert constraint.forced() == []


def test_forced_text_that_takes_more_tokens_than_are_left_is_not_given():
    """The way may write it with fewer than the tokenizer does. Mutants: forced tokens not counted; given anyway."""
    constraint = grammars().compile(Grammar.regex("abc[0-9]{3}"), limit=6)
    short, long = constraint._budget, constraint.forced()
    assert len(long) == 3
    short.left = 5
    short.way = (0, *short.way[2:])  # as if one token wrote two of the letters
    assert constraint.forced() == []
    assert len(short.way) == 5


def test_forced_text_keeps_the_tokens_a_tokenizer_would_write():
    """`he` alone is forced of hello and help; the last tokens could become others. Mutant: one token per byte."""
    tokens = grammars().compile(Grammar.choice(["hello", "help"]), limit=9).forced()
    assert tokens == tokenizer().encode("hello")[: len(tokens)]
    assert tokenizer().decode(tokens) == "he"


@pytest.mark.parametrize(("pattern", "width"), [("[a-z]{9}!", 262), ("(?s:.)*nam!", 300), ('x"[^"]*"[}]', 262)])
def test_ways_use_no_token_that_the_model_lacks(pattern, width):
    """Mutants: ranks, literals or forced tokens of the whole tokenizer. Its last ids write `"}`, `name` and ` true`."""
    for seed in range(6):
        constraint = grammars(width).compile(Grammar.regex(pattern), limit=24)
        text, tokens, _ = generate(constraint, 24, seed, width=width, forcing=seed % 2 == 0)
        assert max(tokens) < width
        assert re.fullmatch(pattern, text)


def test_text_that_the_model_cannot_write_is_refused():
    """llguidance allows one tokenisation of text that must follow. Mutant: `_any` beyond the logits."""
    with pytest.raises(InvalidRequest, match="no answer"):
        grammars(300).compile(Grammar.json_schema({"const": {"name": 1}}), limit=24)


def test_an_answer_is_closed_where_llguidance_gives_up():
    """Mutants: an error instead; `finished` misread from a matcher that has failed."""

    class Limited:
        def __init__(self, inner):
            self.inner, self.masks = inner, 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def unsafe_compute_mask_ptr(self, *args):
            self.masks += 1
            if self.masks == 5:
                assert not self.inner.consume_token(OTHER)
            self.inner.unsafe_compute_mask_ptr(*args)

    schema = {"type": "object", "additionalProperties": {"type": "array"}}
    constraint = grammars().compile(Grammar.json_schema(schema), limit=40)
    constraint._matcher = Limited(constraint._matcher)
    sampler = Sampler(SamplingParams(), (), stop_ids=frozenset({END}), vocab_size=WIDTH, constraint=constraint)
    random, tokens = np.random.default_rng(0), []
    while not sampler.finished:
        tokens.append(sampler.choose(random.standard_normal(WIDTH).astype(np.float32)).token)
        sampler.accept(tokens[-1])
    assert sampler.closed_early
    check(schema, tokenizer().decode(tokens))


def walk(grammar, text, limit, monkeypatch):
    """How many walks and steps of walks an answer takes that is written in single characters."""
    walks, steps, greedy, best = [], [], Closer.greedy, Closer._best
    constraint = grammars().compile(grammar, limit=limit)
    monkeypatch.setattr(Closer, "greedy", lambda *args: walks.append(1) or greedy(*args))
    monkeypatch.setattr(Closer, "_best", lambda *args: steps.append(1) or best(*args))
    for character in text:
        (token,) = tokenizer().encode(character)
        assert constraint.admits(token)
        constraint.accept(token)
    monkeypatch.undo()
    return len(walks), len(steps)


def test_most_tokens_take_neither_mask_nor_walk(monkeypatch):
    """The cost rule. Mutants: `follow` without the old way as such; without its tail; no end of it in a walk."""
    words = Grammar.json_schema({"type": "array", "items": {"type": "string"}})
    walks, steps = walk(words, '["' + "the quick cat " * 20 + '"', 400, monkeypatch)
    assert walks <= 3
    assert steps <= 6
    assert walk(Grammar.regex("[0-9]{60}"), "736" * 20, 60, monkeypatch)[0] <= 20
    tree = {"type": "array", "items": {"type": "array"}}
    long = {"type": "array", "prefixItems": [tree, *[{"type": "integer"}] * 20], "minItems": 21}
    assert walk(Grammar.json_schema(long), "[[[[", 90, monkeypatch)[1] <= 4


def test_a_search_finds_what_a_walk_does_not_but_fails_a_few_times_only(monkeypatch):
    """Mutants: no search after the walk; it is repeated for ever."""
    constraint = grammars().compile(Grammar.regex("z|q[a-z ]*end"), limit=99)
    assert constraint.admits(tokenizer().convert_tokens_to_ids("q"))
    endless = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}]}
    endless["$defs"] = {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1}}
    constraint = grammars().compile(Grammar.json_schema(endless), limit=99)
    searches, original = [], Closer.search
    monkeypatch.setattr(Closer, "search", lambda *args: searches.append(1) or original(*args))
    assert not any(constraint.admits(tokenizer().convert_tokens_to_ids("[")) for _ in range(6))
    assert len(searches) == 3
