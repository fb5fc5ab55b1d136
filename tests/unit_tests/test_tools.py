"""Tools, structured output, constraints and reasoning, on random weights: what a grammar can promise, it keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Literal, TypedDict

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from langchain_accel._structured import _closed
from langchain_accel.errors import InvalidRequest
from tests.reference_models import ChatReference, ReferenceLLM

TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {% for t in tools %}{{ t | tojson }}{% endfor %}"
    'Reply with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def today() -> str:
    """Say the date."""
    return "2026-11-21"


class Mood(Enum):
    """How it feels."""

    GOOD = "good"
    BAD = "bad"


class Person(BaseModel):
    """Someone."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    mood: Mood
    friends: list[str] = Field(default_factory=list, max_length=2)


class Pet(TypedDict):
    """An animal."""

    kind: Literal["cat", "dog"]
    legs: int


@pytest.fixture(scope="module")
def chat(tiny: Path) -> Iterator[ChatReference]:
    model = ChatReference(
        model=str(tiny), rows=8, max_len=1024, max_tokens=128, chat_template=TEMPLATE, temperature=1.0
    )
    yield model.load()
    assert model.stats().undeclared_shapes == 0
    model.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_forced_call_is_always_a_valid_call_of_that_tool(chat: ChatReference, seed: int) -> None:
    """Mutant seen to fail: the grammar left out."""
    answer = chat.bind_tools([add, today], tool_choice="add", parallel_tool_calls=False).invoke(
        "What is 2 + 2?", seed=seed
    )
    (call,) = answer.tool_calls
    assert call["name"] == "add"
    assert set(call["args"]) == {"a", "b"}
    assert all(isinstance(value, int) for value in call["args"].values())
    assert answer.content == ""
    assert not answer.invalid_tool_calls
    assert answer.response_metadata["finish_reason"] in ("tool_calls", "length")


def test_any_tool_will_do_and_one_without_arguments_too(chat: ChatReference) -> None:
    bound = chat.bind_tools([add, today], tool_choice="any")
    names = {call["name"] for seed in range(12) for call in bound.invoke("Do something.", seed=seed).tool_calls}
    assert names == {"add", "today"}


def test_a_call_streams_in_pieces_that_add_up_to_it(chat: ChatReference) -> None:
    bound = chat.bind_tools([add], tool_choice="add", parallel_tool_calls=False)
    chunks = list(bound.stream("Add!", seed=3))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert len([chunk for chunk in chunks if chunk.tool_call_chunks]) > 1
    expected = bound.invoke("Add!", seed=3)
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [
        (call["name"], call["args"]) for call in expected.tool_calls
    ]


def test_tokens_that_a_grammar_dictates_take_no_decode_step(chat: ChatReference) -> None:
    """Markers, names of tools and keys are prefilled together.

    Mutant seen to fail: dictated tokens left to the decode steps.
    """
    before = chat.stats()
    (call,) = chat.bind_tools([today], tool_choice="today", parallel_tool_calls=False).invoke("Date?").tool_calls
    after = chat.stats()
    assert call["name"] == "today"
    tokens = after.output_tokens - before.output_tokens
    assert after.dictated_tokens - before.dictated_tokens > tokens / 2
    assert after.decode_steps - before.decode_steps < tokens / 2


def test_tools_reach_the_template_and_results_come_back(chat: ChatReference) -> None:
    """Mutant seen to fail: tools not passed to the template."""
    plain = chat.get_num_tokens_from_messages([HumanMessage("hi")])
    assert chat.get_num_tokens_from_messages([HumanMessage("hi")], tools=[add]) > plain + 50
    history = [
        HumanMessage("1 + 1?"),
        AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 1}, "id": "c1"}]),
        ToolMessage("2", tool_call_id="c1", status="error"),
    ]
    assert chat.bind_tools([add]).invoke(history, max_tokens=4) is not None


def test_tool_choice_none_hides_the_tools(chat: ChatReference) -> None:
    hidden = chat.bind_tools([add], tool_choice="none").invoke("hi", max_tokens=8, seed=1)
    plain = chat.invoke("hi", max_tokens=8, seed=1)
    assert hidden.usage_metadata["input_tokens"] == plain.usage_metadata["input_tokens"]
    assert hidden.text == plain.text
    assert not hidden.tool_calls


@pytest.mark.parametrize("choice", ["subtract", {"type": "function", "function": {"name": "subtract"}}, 7])
def test_a_choice_that_cannot_be_made_is_refused(chat: ChatReference, choice: object) -> None:
    with pytest.raises(InvalidRequest, match="tool_choice"):
        chat.bind_tools([add], tool_choice=choice).invoke("hi")


def test_a_template_without_tools_says_so(tiny: Path) -> None:
    model = ChatReference(model=str(tiny), rows=8, max_len=512, chat_template="{{ messages[0].content }}")
    with pytest.raises(InvalidRequest, match="renders no tools in a known format"):
        model.bind_tools([add]).invoke("hi")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize(
    "schema", [Person, Pet, Person.model_json_schema()], ids=["pydantic", "typed dict", "json schema"]
)
def test_structured_output_always_parses(chat: ChatReference, method: str, schema: object) -> None:
    """Mutant seen to fail: the grammar left out."""
    structured = chat.with_structured_output(schema, method=method)
    for seed in range(4):
        answer = structured.bind(seed=seed).invoke("Make one up.") if hasattr(structured, "bind") else None
        assert answer is not None
        if schema is Person:
            assert isinstance(answer, Person)
        elif schema is Pet:
            assert answer["kind"] in ("cat", "dog")
        else:
            Person.model_validate(answer)


def test_json_mode_gives_an_object_and_raw_is_kept(chat: ChatReference) -> None:
    answer = chat.bind(response_format={"type": "json_object"}).invoke("JSON, please", seed=5)
    assert isinstance(json.loads(answer.text), dict)
    raw = chat.with_structured_output(Person, include_raw=True).invoke("Make one up.")
    assert isinstance(raw["raw"], AIMessage)
    assert isinstance(raw["parsed"], Person)
    assert raw["parsing_error"] is None
    wrong = chat.with_structured_output(Person, method="json_mode", include_raw=True).invoke("Make one up.")
    assert wrong["parsed"] is None
    assert wrong["parsing_error"] is not None


async def test_structured_output_streams_and_awaits(chat: ChatReference) -> None:
    structured = chat.with_structured_output(Pet)
    assert (await structured.ainvoke("one"))["kind"] in ("cat", "dog")
    assert list(structured.stream("one"))[-1]["legs"] is not None


def test_an_answer_can_be_held_to_a_regex_a_choice_or_a_lark_grammar(chat: ChatReference, tiny: Path) -> None:
    llm = ReferenceLLM(model=str(tiny), rows=8, max_len=512, temperature=1.0)
    for seed in range(5):
        for model in (chat, llm):
            said = model.invoke("Say", regex="[0-9]{3}-[a-f]{2}", seed=seed)
            text = said if isinstance(said, str) else said.text
            assert text[3] == "-"
            assert text[:3].isdigit()
            said = model.invoke("Say", choice=["red", "grün"], seed=seed)
            assert (said if isinstance(said, str) else said.text) in ("red", "grün")
            said = model.invoke("Say", lark='start: "a" "b"+ "c"', seed=seed, max_tokens=40)
            text = said if isinstance(said, str) else said.text
            assert text.startswith("ab")
            assert text.endswith("c")
    with pytest.raises(InvalidRequest, match="one constraint, got regex and choice"):
        chat.invoke("x", regex="a", choice=["b"])


def test_tools_and_a_schema_together_give_one_or_the_other(chat: ChatReference) -> None:
    """`create_agent(response_format=...)` binds both at once."""
    fmt = {"type": "json_schema", "json_schema": {"name": "Person", "schema": Person.model_json_schema()}}
    bound = chat.bind_tools([add], response_format=fmt)
    kinds = set()
    for seed in range(12):
        answer = bound.invoke("Go", seed=seed)
        if answer.tool_calls:
            kinds.add("call")
        else:
            Person.model_validate_json(answer.text)
            kinds.add("answer")
    assert "answer" in kinds or "call" in kinds
    assert not any(bound.invoke("Go", seed=seed).invalid_tool_calls for seed in range(4))


def test_an_answer_invents_no_keys(chat: ChatReference) -> None:
    """Pydantic's own schemas leave objects open. Mutant seen to fail: schemas taken as they are."""
    structured = chat.with_structured_output(Person, include_raw=True)
    for _ in range(3):
        assert set(json.loads(structured.invoke("Make one up.")["raw"].text)) <= set(Person.model_fields)
    like_a_schema = {"type": "object", "properties": {"properties": {"type": "object", "properties": {}}}}
    assert _closed(like_a_schema)["properties"] == {
        "properties": {"type": "object", "properties": {}, "additionalProperties": False}
    }
    left = {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}
    assert _closed(left) == left


def test_a_stop_string_cannot_cut_an_answer_that_follows_a_grammar(chat: ChatReference) -> None:
    """LangChain's parsers would take the cut JSON for whole. Mutant seen to fail: stop strings honoured."""
    with pytest.raises(InvalidRequest, match="would cut an answer"):
        chat.with_structured_output(Pet).invoke("one", stop=["}"])
    stopping = chat.model_copy(update={"stop": ['"']})
    assert stopping.with_structured_output(Pet).invoke("one")["kind"] in ("cat", "dog")


def test_a_schema_that_is_no_json_is_refused(chat: ChatReference) -> None:
    """Mutant seen to fail: objects closed before anyone looks whether the schema can be written."""
    schema: dict[str, object] = {"type": "object"}
    schema["properties"] = {"me": schema}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
        chat.invoke("x", response_format=wanted)


def test_a_schema_without_a_title_and_messages_of_any_form_will_do(chat: ChatReference) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
    for method in ("json_schema", "function_calling"):
        assert chat.with_structured_output(schema, method=method).invoke("x")["n"] in (True, False)
    assert chat.get_num_tokens_from_messages([("human", "hi")]) == chat.get_num_tokens_from_messages(
        [HumanMessage("hi")]
    )


def test_reasoning_is_kept_out_of_the_text(chat: ChatReference) -> None:
    """A model whose template opens `<think>` reasons first; the answer may follow a schema all the same."""
    template = TEMPLATE.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{# </think> #}{% endif %}"
    )
    thinker = chat.model_copy(update={"chat_template": template})
    answer = thinker.invoke("hm", lark=None, max_tokens=12, seed=2)
    assert answer.text == ""
    assert answer.additional_kwargs["reasoning_content"]
    assert [block["type"] for block in answer.content_blocks] == ["reasoning"]
