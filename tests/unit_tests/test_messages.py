"""LangChain messages into what chat templates read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_accel._messages import to_template
from langchain_accel.errors import InvalidRequest


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (SystemMessage("be brief"), {"role": "system", "content": "be brief"}),
        (HumanMessage("hi", name="ada"), {"role": "user", "content": "hi", "name": "ada"}),
        (AIMessage("hello"), {"role": "assistant", "content": "hello"}),
        (ChatMessage("x", role="developer"), {"role": "developer", "content": "x"}),
        (
            ToolMessage("42", tool_call_id="c1", name="add"),
            {"role": "tool", "content": "42", "name": "add", "tool_call_id": "c1"},
        ),
    ],
)
def test_each_kind_of_message_has_its_role(message: BaseMessage, expected: dict[str, str]) -> None:
    """Mutant seen to fail: names dropped."""
    assert to_template([message]) == [expected]


def test_tool_calls_keep_their_arguments_as_an_object() -> None:
    """Templates render arguments themselves; a JSON string would be quoted twice."""
    call = {"name": "add", "args": {"a": 1}, "id": "c1"}
    (converted,) = to_template([AIMessage("", tool_calls=[call])])
    function = {"name": "add", "arguments": {"a": 1}}
    assert converted["tool_calls"] == [{"type": "function", "id": "c1", "function": function}]


@given(st.lists(st.text()))
def test_text_blocks_are_joined_in_order(parts: list[str]) -> None:
    """Strings and text blocks mean the same. Mutant seen to fail: parts joined with a line break."""
    blocks = [part if index % 2 else {"type": "text", "text": part} for index, part in enumerate(parts)]
    assert to_template([HumanMessage(content=blocks)])[0]["content"] == "".join(parts)


def test_an_assistants_reasoning_and_tool_blocks_are_not_its_text() -> None:
    reasoning, call = {"type": "reasoning", "reasoning": "hm"}, {"type": "tool_call", "name": "f"}
    content = [reasoning, {"type": "text", "text": "yes"}, call]
    assert to_template([AIMessage(content=content)])[0]["content"] == "yes"


@pytest.mark.parametrize("kind", ["image_url", "image", "audio", "file", "video"])
def test_content_that_is_not_text_is_refused_with_its_type_and_place(kind: str) -> None:
    """Mutant seen to fail: unknown blocks skipped, so that the model never hears of the picture."""
    blocks = [{"type": "text", "text": "see"}, {"type": kind, kind: "..."}]
    messages = [SystemMessage("s"), HumanMessage(content=blocks)]
    with pytest.raises(InvalidRequest, match=rf"message 1 \(human\) holds a block of type '{kind}' at index 1"):
        to_template(messages)


def test_a_message_that_is_no_turn_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="message 0 is a RemoveMessage"):
        to_template([RemoveMessage(id="1")])
