"""LangChain messages to the dictionaries that chat templates read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_accel.errors import InvalidRequest

ROLES: dict[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "tool",
}

NOT_TEXT_OF_ITS_OWN = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "reasoning", "thinking")
"""Blocks of an assistant's message that the template renders from elsewhere, or not at all."""


def to_template(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Convert messages to `{"role": ..., "content": ...}` dictionaries, tool calls with parsed arguments.

    Raises:
        InvalidRequest: a message has a role or a content block that a text model cannot take.
    """
    return [_convert(index, message) for index, message in enumerate(messages)]


def _convert(index: int, message: BaseMessage) -> dict[str, Any]:
    role = message.role if isinstance(message, ChatMessage) else _role(index, message)
    converted: dict[str, Any] = {"role": role, "content": _text(index, message)}
    if message.name:
        converted["name"] = message.name
    if isinstance(message, AIMessage) and message.tool_calls:
        converted["tool_calls"] = [
            {"type": "function", "id": call["id"], "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    if isinstance(message, ToolMessage):
        converted["tool_call_id"] = message.tool_call_id
    return converted


def _role(index: int, message: BaseMessage) -> str:
    for kind, role in ROLES.items():
        if isinstance(message, kind):
            return role
    msg = f"message {index} is a {type(message).__name__}; a chat takes system, human, AI, tool and ChatMessage"
    raise InvalidRequest(msg)


def _text(index: int, message: BaseMessage) -> str:
    """Join the text of a message's content, whatever form it has."""
    if isinstance(message.content, str):
        return message.content
    parts = []
    for position, block in enumerate(message.content):
        kind = "text" if isinstance(block, str) else block.get("type")
        if isinstance(block, str):
            parts.append(block)
        elif kind == "text" and isinstance(block.get("text"), str):
            parts.append(block["text"])
        elif not (isinstance(message, AIMessage) and kind in NOT_TEXT_OF_ITS_OWN):
            msg = (
                f"message {index} ({message.type}) holds a block of type {kind!r} at index {position}; "
                "this model reads text only: leave the block out or describe it in words"
            )
            raise InvalidRequest(msg)
    return "".join(parts)
