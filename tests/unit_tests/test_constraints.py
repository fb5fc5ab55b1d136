"""Whatever the logits, an answer under a grammar follows it."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from langchain_accel.errors import AccelError, InvalidRequest
from langchain_accel.runtime import constraints
from langchain_accel.runtime.constraints import Grammar, Grammars
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.sampling import Sampler
from tests.unit_tests.small_vocabulary import END, TURN, WIDTH, tokenizer

pytest.importorskip("llguidance")


@lru_cache
def grammars():
    return Grammars(tokenizer(), WIDTH, [END, TURN])


def allowed(constraint, width=WIDTH):
    logits = np.zeros(width, np.float32)
    constraint.mask(logits)
    assert set(logits.tolist()) <= {0.0, -np.inf}
    return np.flatnonzero(logits == 0).tolist()


def generate(grammar, *, seed, temperature=0.0, limit=400):
    """The text of an answer to random logits, and whether it ended by itself."""
    constraint, random = grammars().compile(grammar), np.random.default_rng(seed)
    params = SamplingParams(temperature=temperature, seed=seed)
    sampler = Sampler(params, (), stop_ids=frozenset({END, TURN}), vocab_size=WIDTH, constraint=constraint)
    tokens = []
    while len(tokens) < limit and not sampler.finished:
        token = sampler.choose(random.standard_normal(WIDTH).astype(np.float32) * 3).token
        sampler.accept(token)
        if token in sampler.stop_ids:
            return tokenizer().decode(tokens), True
        assert token < len(tokenizer())
        tokens.append(token)
    return tokenizer().decode(tokens), sampler.finished


class Home(BaseModel, extra="forbid"):
    city: str = Field(max_length=4)
    open: bool


class Person(BaseModel, extra="forbid"):
    name: str = Field(max_length=6, min_length=1)
    age: int = Field(ge=0, le=150)
    kind: Literal["cat", "dog", 3] | None
    tags: list[Annotated[str, Field(max_length=3)]] = Field(min_length=1, max_length=3)
    homes: list[Home] = Field(max_length=2)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.0, 1.0]))
def test_random_logits_yield_json_that_follows_the_schema(seed, temperature):
    """Mutants: mask not applied; bits read in the other order; flexible white space."""
    text, ended = generate(Grammar.json_schema(Person.model_json_schema()), seed=seed, temperature=temperature)
    assert ended
    Person.model_validate_json(text, strict=True)
    value = json.loads(text)
    assert text == json.dumps(value, ensure_ascii=False, separators=(",", ":")) or "\\" in text
    assert list(value) == list(Person.model_fields)  # the order of the schema


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.0, 1.0]))
def test_random_logits_yield_text_that_matches_the_pattern(seed, temperature):
    pattern = r"(cat|dog)-[0-9]{2,4}(é|😀)?"
    text, ended = generate(Grammar.regex(pattern), seed=seed, temperature=temperature)
    assert ended
    assert re.fullmatch(pattern, text)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_logits_yield_text_of_the_lark_grammar(seed):
    grammar = """
        start: "<call>" %json {"type": "integer", "minimum": 0, "maximum": 99} "</call>" | list
        list: "[" item ("," item)? "]"
        item: /[a-c]/ | "你好"
    """
    text, ended = generate(Grammar.lark(grammar), seed=seed)
    assert ended
    assert re.fullmatch(r"<call>\d\d?</call>|\[([a-c]|你好)(,([a-c]|你好))?\]", text)


awkward = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['"', "\\", "a\\nb", "\x7f\x85", "/x/", "%json {}", "a|b", "$", "\n\t", "\x00", "''", "start: x", "yes", "yes!"]
)


@settings(max_examples=100, deadline=None)
@given(options=st.lists(awkward, min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_random_logits_yield_one_of_the_options(options, seed):
    """Mutant: options joined without quoting."""
    text, ended = generate(Grammar.choice(options), seed=seed)
    assert ended
    assert text in options


def test_any_object():
    grammar = Grammar.json_schema(True)
    assert grammar == Grammar.json_schema('{"type": "object"}') == Grammar.json_schema({"type": "object"})
    constraint = grammars().compile(grammar)
    for token in tokenizer().encode('{"a":[1,{"b":null}]}'):
        assert token in allowed(constraint)
        constraint.accept(token)
    assert constraint.finished


def test_every_end_token_is_allowed_exactly_where_the_grammar_may_end():
    """Mutant: only the first end-of-sequence id passed on."""
    for end in (END, TURN):
        constraint = grammars().compile(Grammar.regex("ab?"))
        assert not {END, TURN} & set(allowed(constraint))
        constraint.accept(tokenizer().convert_tokens_to_ids("a"))
        assert {END, TURN} <= set(allowed(constraint))
        assert not constraint.finished
        constraint.accept(end)
        assert constraint.finished
    constraint = grammars().compile(Grammar.regex("a"))
    constraint.accept(tokenizer().convert_tokens_to_ids("a"))
    assert constraint.finished
    assert allowed(constraint) == [END, TURN]


@pytest.mark.parametrize("width", [300, 420, 421, 500, 1000])
def test_logits_of_any_width_are_masked_to_the_vocabulary(width):
    """Mutants: `n_vocab=vocab_size` (refused where it is smaller); ids beyond the tokenizer left allowed."""
    constraint = Grammars(tokenizer(), width, [END, TURN, 999_999]).compile(Grammar.regex("(?s:.*)"))
    tokens = allowed(constraint, width)
    assert {END, TURN, 66} <= set(tokens)
    assert max(tokens) < len(tokenizer())
    assert 2 not in tokens  # special tokens are no text


def test_a_token_outside_the_grammar_is_an_error():
    """Mutant: the matcher's answer ignored."""
    constraint = grammars().compile(Grammar.regex("[0-9]+"))
    with pytest.raises(AccelError, match="does not follow the grammar"):
        constraint.accept(tokenizer().convert_tokens_to_ids("a"))
    with pytest.raises(AccelError):
        constraint.mask(np.zeros(WIDTH, np.float32))


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar.regex("(a"), "unclosed group"),
        (Grammar.lark("start: missing"), "missing"),
        (Grammar.lark("begin: 'x'"), "lark grammar"),
        (Grammar.json_schema({"type": "sting"}), "sting"),
        (Grammar.json_schema("{"), "json_schema grammar"),
        (Grammar.json_schema("[1]"), "object"),
        (Grammar.json_schema({"not": {"type": "string"}}), "not"),
        (Grammar.choice([]), "non-empty list"),
        (Grammar("choice", '{"a": 1}'), "non-empty list"),
        (Grammar("choice", "x"), "choice grammar"),
    ],
)
def test_a_bad_grammar_is_refused_with_its_reason(grammar, reason):
    """Mutant: `is_error` not asked."""
    with pytest.raises(InvalidRequest, match=re.escape(reason)):
        grammars().compile(grammar)


@pytest.mark.parametrize("schema", [False, None, 3, {"const": object()}])
def test_what_is_no_schema_is_refused(schema):
    with pytest.raises(InvalidRequest, match="JSON"):
        Grammar.json_schema(schema)


def test_what_no_grammar_can_be_enforced_for_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(InvalidRequest, match="fast tokenizer"):
        Grammars(Slow(), 100, [0]).compile(Grammar.regex("a"))
    with pytest.raises(InvalidRequest, match="end-of-sequence"):
        Grammars(tokenizer(), WIDTH, []).compile(Grammar.regex("a"))


def test_each_constraint_starts_anew_and_grammars_are_compiled_once(monkeypatch):
    """Mutants: no `deep_copy` (constraints share a place in the text); no cache."""
    subject, compiled = Grammars(tokenizer(), WIDTH, [END]), []
    original = constraints._translate
    monkeypatch.setattr(constraints, "_translate", lambda grammar: compiled.append(grammar) or original(grammar))
    first, second = (subject.compile(Grammar.regex("ab")) for _ in range(2))
    first.accept(tokenizer().convert_tokens_to_ids("a"))
    third = subject.compile(Grammar.regex("ab"))
    letter = [tokenizer().convert_tokens_to_ids(each) for each in "ab"]
    assert allowed(first) == [letter[1]]
    assert allowed(second) == allowed(third) == [letter[0]]
    assert compiled == [Grammar.regex("ab")]


def test_many_threads_compile_while_others_generate(monkeypatch):
    """The tokenizer is prepared once, and copies do not disturb each other. Mutant: no lock."""
    module = pytest.importorskip("llguidance.hf")
    built, original = [], module.from_tokenizer

    def slow(*args, **kwargs):
        built.append(1)
        time.sleep(0.02)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "from_tokenizer", slow)
    subject = Grammars(tokenizer(), WIDTH, [END])

    def work(seed):
        random = np.random.default_rng(seed)
        pattern = f"x{seed % 3}[a-z]{{1,6}}y"
        constraint, tokens = subject.compile(Grammar.regex(pattern)), []
        while not constraint.finished:
            tokens.append(int(random.choice(allowed(constraint))))
            constraint.accept(tokens[-1])
        return re.fullmatch(pattern, tokenizer().decode(tokens, skip_special_tokens=True)) is not None

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))
    assert len(built) == 1
