"""The text that the reader is trained on: true, apart from the evaluation, and written as the template writes it."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from langchain_accel._messages import to_template
from tools.reader import builds
from tools.reader.evaluate import messages, tasks
from tools.reader.facts import FAMILIES, Facts, fill, slots_in
from tools.reader.pieces import Pieces
from tools.reader.reading import UNKNOWN, Reading, Size, stems
from tools.reader.tokens import encode, segments, train_tokenizer
from tools.reader.toolcalls import NO_TOOL, ToolCalls
from tools.reader.words import Words, held_out

seeds = st.integers(0, 2**32)


@pytest.mark.parametrize("evaluation", [False, True])
@settings(max_examples=50, deadline=None)
@given(seed=seeds)
def test_words_of_the_evaluation_are_kept_from_training(evaluation: bool, seed: int) -> None:
    """Mutant to catch: `_mine` returning True."""
    words = Words(random.Random(seed), evaluation=evaluation)
    drawn = [words.noun(), words.adjective(), words.verb(), words.invented(), words.number(), words.code()]
    assert [held_out(word) for word in drawn] == [evaluation] * len(drawn)


def test_phrasings_of_the_evaluation_are_kept_from_training() -> None:
    for family in FAMILIES.values():
        assert not set(family.statements) & set(family.evaluation_statements)
        assert not set(family.questions) & set(family.evaluation_questions)


def test_every_statement_has_a_question_that_it_answers() -> None:
    for family in FAMILIES.values():
        for statements, questions in (
            (family.statements, family.questions),
            (family.evaluation_statements, family.evaluation_questions),
        ):
            for statement in statements:
                assert any(len(slots_in(question) & slots_in(statement)) >= 2 for question in questions), statement


@settings(max_examples=100, deadline=None)
@given(seed=seeds)
def test_sentences_of_any_build_answer_questions_of_their_own_words(seed: int) -> None:
    """Mutant: a question of slots drawn from all there are."""
    rng = random.Random(seed)
    statement = builds.statement(rng)
    told = slots_in(statement)
    question, what = builds.question(rng, told, statement)
    assert not question or len(slots_in(question)) >= 2
    assert slots_in(question) <= told
    assert what in statement
    assert not slots_in(what) & slots_in(question)
    fill(statement + question, Facts(rng).slots())


@settings(max_examples=100, deadline=None)
@given(seed=seeds)
def test_a_variant_is_told_apart_by_its_question(seed: int) -> None:
    """It asks the same of something else. Mutant: the changed slot kept."""
    facts = Facts(random.Random(seed))
    fact = facts.fact()
    assume(slots_in(fact.asked) & slots_in(fact.statement) - {"d", "q", "v"})
    variant = facts.variant(fact)
    assert (variant.statement, variant.asked) == (fact.statement, fact.asked)
    changed = {
        name for name in slots_in(fact.asked) & slots_in(fact.statement) if variant.slots[name] != fact.slots[name]
    }
    assert changed


@settings(max_examples=50, deadline=None)
@given(seed=seeds)
def test_facts_of_one_topic_speak_of_few_things(seed: int) -> None:
    """And of others when it is over. Mutant: no word of a topic taken."""
    facts = Facts(random.Random(seed))
    with facts.topic():
        within = [facts.fact().slots["e"] for _ in range(30)]
    after = [facts.fact().slots["e"] for _ in range(30)]
    assert len(set(within)) < 28
    assert len(set(after)) > 28


@settings(max_examples=100, deadline=None)
@given(seed=seeds)
def test_a_clear_question_shares_most_words_with_its_own_sentence(seed: int) -> None:
    """Another sentence with all of its words, and more, leaves none that is clear. Mutant: ties allowed."""
    reading = Reading(random.Random(seed))
    fact, other = reading.facts.fact(), reading.facts.fact()
    asked, own, others = (
        stems(reading._clear(fact, [stems(other.sentence)])),
        stems(fact.sentence),
        stems(other.sentence),
    )
    assert not asked or len(asked & own) > len(asked & others)
    assert reading._clear(fact, [own | {"#"}]) == ""


_FORMS = {"do": ("do", "does", "done", "doing"), "do2": ("do2", "does2", "done2", "doing2")}


def _holds(sentence: str, words: str) -> bool:
    """Whether a sentence has all of some words, between which others may stand."""
    return all(word in sentence.lower() for word in words.lower().split())


@settings(max_examples=100, deadline=None)
@given(seed=seeds)
def test_a_distractor_lacks_a_word_of_the_question_or_what_it_asks_for(seed: int) -> None:
    """Mutant: one that shares all words, whatever is asked for."""
    facts = Facts(random.Random(seed))
    fact = facts.fact()
    other = facts.distractor(fact)
    assume(other)
    asked = slots_in(fact.asked) & slots_in(fact.statement)
    shared = {slot for slot in asked if any(_holds(other, fact.slots[form]) for form in _FORMS.get(slot, (slot,)))}
    assert shared
    assert shared < asked or fact.told


@pytest.mark.parametrize("evaluation", [False, True])
@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_answers_are_sentences_of_the_text_or_unknown(evaluation: bool, seed: int) -> None:
    """Mutant to catch: an answer in lower case."""
    made = Reading(random.Random(seed), evaluation=evaluation).conversation(Size((1, 3), (2, 4), (1, 3)), distractors=1)
    asked = next(text for role, text in made.turns if role == "user")
    answers = [text for role, text in made.turns if role == "assistant"]
    assert answers
    for answer in answers:
        assert answer == UNKNOWN or f"{answer}" in asked
        assert answer.endswith(".")


@pytest.mark.parametrize("evaluation", [False, True])
@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_calls_follow_their_schema_and_copy_the_request(evaluation: bool, seed: int) -> None:
    """Mutant to catch: arguments of another tool."""
    made = ToolCalls(random.Random(seed), evaluation=evaluation).conversation()
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in made.tools}
    request = ""
    for role, text in made.turns:
        if role == "user":
            request = text.lower()
        if role != "assistant" or not text.startswith("<tool_call>"):
            continue
        call = json.loads(re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", text)[1])
        jsonschema.validate(call["arguments"], {**schemas[call["name"]], "additionalProperties": False})
        for value in call["arguments"].values():
            assert str(value).lower() in request
    if made.kind == "no tool":
        assert made.turns[-1] == ("assistant", NO_TOOL)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_extractions_are_json_of_the_text(seed: int) -> None:
    made = ToolCalls(random.Random(seed)).extraction()
    asked, answer = made.turns[0][1], json.loads(made.turns[1][1])
    assert answer
    for key, value in answer.items():
        assert json.dumps(key) in asked
        assert str(value).lower() in asked.lower()


def test_training_sees_what_the_chat_template_writes() -> None:
    """By hand for speed in training, by the template in use. Mutant to catch: a line end after the system turn."""
    tokenizer = train_tokenizer(["some words"])
    rng = random.Random(1)
    reading, tools = Reading(rng), ToolCalls(rng)
    made = [reading.conversation(Size()) for _ in range(10)] + [tools.conversation() for _ in range(30)]
    for conversation in made:
        rendered = tokenizer.apply_chat_template(
            to_template(messages(conversation, in_prompt=False)),
            tools=conversation.tools or None,
            tokenize=False,
            add_generation_prompt=True,
        )
        pieces = [text for text, _ in segments(conversation)]
        assert rendered == "".join(pieces[:-2]), conversation


@pytest.fixture(scope="module")
def tokenizer() -> object:
    tools = ToolCalls(random.Random(2))
    made = [tools.conversation() for _ in range(300)]
    return train_tokenizer("".join(text for text, _ in segments(conversation)) for conversation in made)


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_any_text_can_be_written(tokenizer: object, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_word_is_the_same_pieces_after_a_space_and_after_a_quote(tokenizer: object) -> None:
    """Mutant: spaces merged when their turn comes, as byte-level vocabularies are trained."""
    words = Words(random.Random(3))
    for word in [words.noun() for _ in range(50)] + [words.blend() for _ in range(50)]:
        written, quoted = (
            [tokenizer.decode([token]) for token in tokenizer.encode(text, add_special_tokens=False)]
            for text in (f" {word}", f'"{word}"')
        )
        assert [piece.lstrip(" ") for piece in written if piece != " "] == quoted[1:-1]


def test_words_are_split_alike_in_all_of_a_group(tokenizer: object) -> None:
    """Every word that carries facts, none of schemas. Mutants: words drawn anew at every place; schemas split."""
    pieces = Pieces(tokenizer)
    conversation = ToolCalls(random.Random(4)).conversation(fitting=1.0)
    encoded = encode(tokenizer, conversation)
    assert pieces.split(encoded, 0.0, 1) == encoded
    ids, learnt = pieces.split(encoded, 1.0, 1)
    assert len(ids) == len(learnt) > len(encoded[0])
    assert tokenizer.decode(ids) == tokenizer.decode(encoded[0])
    whole = [token for token, learn in zip(*encoded, strict=True) if learn]
    assert tokenizer.decode([token for token, learn in zip(ids, learnt, strict=True) if learn]) == tokenizer.decode(
        whole
    )
    fixed = tokenizer.encode("function", add_special_tokens=False)
    assert ids.count(fixed[0]) == encoded[0].count(fixed[0]) > 0
    some = [pieces.split(([token], [True]), 0.5, 7)[0] for token in [*encoded[0], *encoded[0]]]
    assert some[: len(encoded[0])] == some[len(encoded[0]) :]
    assert len(encoded[0]) < sum(map(len, some)) / 2 < len(ids)


def test_the_evaluation_is_the_same_every_time() -> None:
    first, second = tasks(0.02), tasks(0.02)
    assert first == second
    assert all(task.conversations for task in first)
