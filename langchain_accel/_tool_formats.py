"""How model families write tool calls and reasoning.

| format | one call | learnt by |
|---|---|---|
| `hermes` | `{"name": N, "arguments": A}`, on a line between `<tool_call>` and `</tool_call>` | Qwen 2 to 3, Hermes |
| `llama3` | the message is `{"name": N, "parameters": A}`, sometimes after `<|python_tag|>` | Llama 3.1 to 4 |
| `mistral` | `[TOOL_CALLS] [{"name": N, "arguments": A}, ...]` | Mistral 7B v0.3, Nemo, Small 3.1 |
| `mistral_args` | `[TOOL_CALLS]N[ARGS]A`, or with an id `[TOOL_CALLS]N[CALL_ID]I[ARGS]A` | Small 3.2, Magistral |

Sources: the chat templates of these models, and vLLM's `hermes`, `llama3_json` and `mistral` tool parsers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

CALL_ID, ARGS = "[CALL_ID]", "[ARGS]"
"""Markers inside a call of the `named` layout."""

NAME = re.compile(r"[^\s\[\]{}]+")
"""Names of tools that every layout can hold."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The syntax of one family's tool calls.

    Attributes:
        name: what a user calls it.
        layout: `tagged`: every call stands between `opener` and `closer`; `bare`: a call is the whole message;
            `listed`: one JSON list after `opener`; `named`: name, then arguments, after `opener`.
        opener: the marker that begins a call; in a `bare` format it may be missing.
        closer: the marker that ends a call, or nothing.
        arguments: the key of a call's arguments.
        id_prefix: how ids of calls begin.
        id_digits: hexadecimal digits after it. Mistral's templates refuse ids that are not nine letters or digits.
        between: what stands between two calls that each have an opener.
    """

    name: str
    layout: Literal["tagged", "bare", "listed", "named"]
    opener: str
    closer: str = ""
    arguments: str = "arguments"
    id_prefix: str = "call_"
    id_digits: int = 12
    between: str = ""


@dataclass(frozen=True, slots=True)
class Thinking:
    """The markers around a model's reasoning."""

    opener: str = "<think>"
    closer: str = "</think>"

    def left_open(self, prompt: str) -> bool:
        """Whether a rendered prompt ends inside reasoning, so that the answer begins there."""
        return prompt.rstrip().endswith(self.opener)


FORMATS: Mapping[str, ToolFormat] = MappingProxyType(
    {
        each.name: each
        for each in (
            ToolFormat("hermes", "tagged", "<tool_call>", "</tool_call>", between="\n"),
            ToolFormat("llama3", "bare", "<|python_tag|>", arguments="parameters"),
            ToolFormat("mistral", "listed", "[TOOL_CALLS]", id_prefix="", id_digits=9),
            ToolFormat("mistral_args", "named", "[TOOL_CALLS]", id_prefix="", id_digits=9),
        )
    }
)


def detect(template: str | None) -> ToolFormat | None:
    """Return the format that a chat template renders tool calls in, or `None` where it is none of `FORMATS`.

    Qwen3-Coder (`<function=`) and GLM 4.5 (`<arg_key>`) share Hermes' marker and nothing else: they are none of these.
    """
    if not template:
        return None
    if "[TOOL_CALLS]" in template:
        return FORMATS["mistral_args" if ARGS in template else "mistral"]
    if "<tool_call>" in template and "arguments" in template and not re.search(r"<function=|<arg_key>", template):
        return FORMATS["hermes"]
    if "<|python_tag|>" in template or '{"name": function name, "parameters":' in template:
        return FORMATS["llama3"]
    return None


def detect_thinking(template: str | None) -> Thinking | None:
    """Return the reasoning markers that a chat template knows, or `None`."""
    for thinking in (Thinking(), Thinking("[THINK]", "[/THINK]")):
        if template and thinking.closer in template:
            return thinking
    return None


def visible_tokens(tool_format: ToolFormat | None, tokenizer: Any, thinking: Thinking | None = None) -> dict[int, str]:
    """Return the markers that decoding hides because they are special tokens, with their ids.

    Args:
        tool_format: format of the tool calls, if any are expected.
        tokenizer: transformers tokenizer of the model.
        thinking: markers of its reasoning, if it has any.
    """
    added, markers = tokenizer.added_tokens_decoder, markers_of(tool_format, thinking)
    return {token: each.content for token, each in added.items() if each.special and each.content in markers}


def markers_of(tool_format: ToolFormat | None, thinking: Thinking | None) -> set[str]:
    """Return every marker of these."""
    markers = {thinking.opener, thinking.closer} if thinking else set()
    if tool_format:
        markers |= {tool_format.opener, tool_format.closer}
        markers |= {CALL_ID, ARGS} if tool_format.layout == "named" else set()
    return markers
