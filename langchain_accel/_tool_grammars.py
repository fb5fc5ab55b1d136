"""Grammars for tool calls: exactly the calls that the declared tools allow, as the model's family writes them.

They write JSON as chat templates do: a space after commas and colons, properties in the order of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from langchain_accel._tool_formats import ARGS, CALL_ID, NAME, Thinking, ToolFormat, markers_of
from langchain_accel.errors import InvalidRequest
from langchain_accel.runtime.constraints import Grammar

WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How grammars write JSON (llguidance's `x-guidance`)."""

OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties", "$ref", "allOf", "anyOf", "oneOf"}
"""Keywords of a schema that may allow properties beyond `properties`."""

BARE_HEAD = r"""/[ \t\r\n]*\{[ \t\r\n]*("type"[ \t\r\n]*:[ \t\r\n]*"function"[ \t\r\n]*,[ \t\r\n]*)?"name"/"""
"""How a call begins that is the whole message; Llama 3 sometimes writes a type first."""


def forced_grammar(
    tool_format: ToolFormat,
    tools: Sequence[Mapping[str, Any]],
    names: Iterable[str] | None,
    tokenizer: Any,
    *,
    parallel: bool,
    reasoning: Thinking | None = None,
    schema: str | None = None,
) -> Grammar:
    """Return the grammar of one call, or of several, and nothing else.

    Args:
        tool_format: how the model writes calls.
        tools: in OpenAI's form.
        names: the tools that may be called; `None` or none means all.
        tokenizer: of the model; tells which markers are tokens of their own.
        parallel: whether several calls may follow each other, where the format can.
        reasoning: the model's markers where the prompt has opened its reasoning: it may finish that first.
        schema: a JSON schema, as text; the answer may be JSON that follows it instead of calls.

    Raises:
        InvalidRequest: a name is no tool's, a tool is malformed, or its schema cannot be enforced.
    """
    schemas = _schemas(tools)
    chosen = list(dict.fromkeys(names or schemas))
    if unknown := [name for name in chosen if name not in schemas]:
        msg = f"no tool is named {', '.join(map(repr, unknown))}; the tools are {', '.join(map(repr, schemas))}"
        raise InvalidRequest(msg)
    lark = _Lark(tool_format, {name: schemas[name] for name in chosen}, tokenizer, reasoning)
    one = lark.rest(several=parallel)
    if tool_format.layout != "bare":
        one = f"{lark.marker(tool_format.opener)} {one}"
    more = f"({_literal(tool_format.between)} {one})*" if parallel and tool_format.layout in ("tagged", "named") else ""
    thought = rf"{lark.upto(reasoning.closer)} /\n{{0,2}}/" if reasoning else ""
    calls = f"{one} {more}"
    return lark.grammar(f"{thought} ({calls} | answer)" if schema else f"{thought} {calls}", schema)


def json_grammar(schema: str, tokenizer: Any, *, reasoning: Thinking | None = None) -> Grammar:
    """Return the grammar of JSON that follows a schema.

    Args:
        schema: as text.
        tokenizer: of the model; tells which markers are tokens of their own.
        reasoning: the model's markers where the prompt has opened its reasoning: it may finish that first.
    """
    if reasoning is None:
        return Grammar.json_schema(_written(json.loads(schema)))
    lark = _Lark(NO_CALLS, {}, tokenizer, reasoning)
    return lark.grammar(rf"{lark.upto(reasoning.closer)} /\n{{0,2}}/ answer", schema)


def auto_grammar(
    tool_format: ToolFormat,
    tools: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    thinking: Thinking | None = None,
    reasoning_open: bool = False,
) -> Grammar:
    """Return the grammar of a model that speaks freely, but whose every call names a tool and follows its schema.

    Free is any text and any added token that decoding shows. Control tokens (special ones that are no marker here) are
    not free. What looks like a call inside reasoning is text.

    Args:
        tool_format: how the model writes calls.
        tools: in OpenAI's form.
        tokenizer: of the model; tells which markers are tokens of their own.
        thinking: markers of its reasoning, if it has any.
        reasoning_open: whether the prompt has opened its reasoning.

    Raises:
        InvalidRequest: there is no tool, a tool is malformed, or its schema cannot be enforced.
    """
    lark = _Lark(tool_format, _schemas(tools), tokenizer, thinking)
    call = f"{lark.upto(tool_format.opener)} {lark.rest(several=True)}"
    thought, last = "", "text"
    if thinking:
        thought = f"{lark.upto(thinking.opener)} {lark.upto(thinking.closer)}"
        last = f"text | {lark.upto(thinking.opener)} text"
    if tool_format.layout == "bare":  # the whole message is the call: nothing follows it
        start = f'({call} | bare_head call "}}" | {last})'
        start = f"({thought})* {start}" if thinking else start
    else:
        start = f"({call} | {thought})* ({last})" if thinking else f"({call})* {last}"
    if thinking and reasoning_open:
        start = f"text | {lark.upto(thinking.closer)} {start}"
    return lark.grammar(start)


NO_CALLS = ToolFormat("none", "bare", "")
"""For answers without tools."""


class _Lark:
    """One grammar in llguidance's dialect of Lark.

    A marker that is an added token of the tokenizer is named by its id: no text of a grammar stands for an added token,
    special or not. Free text also ends where a marker is spelled in ordinary tokens.

    Args:
        tool_format: how calls are written.
        schemas: JSON schema of the arguments by tool, as text.
        tokenizer: of the model.
        thinking: markers of its reasoning.
    """

    def __init__(
        self, tool_format: ToolFormat, schemas: Mapping[str, str], tokenizer: Any, thinking: Thinking | None
    ) -> None:
        added = tokenizer.added_tokens_decoder
        markers = markers_of(tool_format, thinking)
        free = [str(token) for token, each in added.items() if not each.special and each.content not in markers]
        self._format = tool_format
        self._ids = {each.content: token for token, each in added.items()}
        self._calls = " | ".join(f"{self._head(name)} %json {schema}" for name, schema in schemas.items())
        self._free = f"(TEXT <[{','.join(free)}]>)*" if free else ""
        self._ends: dict[str, str] = {}

    def _head(self, name: str) -> str:
        """A call's beginning: from after `{"name"`, if that is how it begins, to its arguments."""
        if self._format.layout == "named":
            own_id = f"({self.marker(CALL_ID)} /[a-zA-Z0-9]{{9}}/)?" if CALL_ID in self._ids else ""
            return f"{_literal(name)} {own_id} {self.marker(ARGS)}"
        return _literal(f': {json.dumps(name, ensure_ascii=False)}, "{self._format.arguments}": ')

    def marker(self, marker: str) -> str:
        """A marker, as this tokenizer writes it."""
        return f"<[{self._ids[marker]}]>" if marker in self._ids else _literal(marker)

    def upto(self, marker: str) -> str:
        """Free text and the marker that ends it."""
        return self._ends.setdefault(marker, f"upto{len(self._ends)}")

    def rest(self, *, several: bool) -> str:
        """A call from after its opener to its end; in a list also the calls that follow, where there may be several."""
        item = r'"{\"name\"" call "}"'
        match self._format.layout:
            case "tagged":
                return rf'"\n" {item} "\n" {self.marker(self._format.closer)}'
            case "listed":
                more = f'(", " {item})*' if several else ""
                return f'/ ?/ "[" {item} {more} "]"'
            case "bare":
                return item
            case "named":
                return "call"

    def grammar(self, start: str, schema: str | None = None) -> Grammar:
        """The grammar of an expression of these, and of `answer`: JSON that follows a schema."""
        rules = [f"start: {start}", f"text: {self._free} TEXT", f"bare_head[lazy]: {BARE_HEAD}", "TEXT: /(?s:.*)/"]
        rules += [f"call: {self._calls}"] if self._calls else []
        rules += [f"answer: %json {json.dumps(_written(json.loads(schema)))}"] if schema else []
        for marker, rule in self._ends.items():
            token = f"| {self._free} TEXT {self.marker(marker)}" if marker in self._ids else ""
            rules += [f"{rule}: {self._free} {rule}_spelled {token}", f"{rule}_spelled[lazy]: TEXT {_literal(marker)}"]
        return Grammar.lark("\n".join(rules))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the JSON schema of each tool's arguments, as text, by the tool's name."""
    schemas: dict[str, str] = {}
    for tool in tools:
        function = tool.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not NAME.fullmatch(name):
            msg = f"a tool is {{'type': 'function', 'function': {{'name': ..., 'parameters': ...}}}}, got {tool!r}"
            raise InvalidRequest(msg)
        if name in schemas:
            msg = f"two tools are named {name!r}: a call could not tell which is meant"
            raise InvalidRequest(msg)
        schemas[name] = _arguments(name, function.get("parameters") or {"properties": {}})
    if not schemas:
        msg = "a grammar for tool calls needs at least one tool"
        raise InvalidRequest(msg)
    return schemas


def _arguments(name: str, parameters: Mapping[str, Any]) -> str:
    """Return the schema of a tool's arguments: an object, with only the properties that it declares.

    A schema that composes others, or says itself what else is allowed, is left as open as it is.
    """
    schema = {"type": "object", **parameters}
    if schema["type"] != "object":
        msg = f"the parameters of tool {name!r} must be of type object, not {schema['type']!r}"
        raise InvalidRequest(msg)
    if "properties" in schema and not OPEN & schema.keys():
        schema["additionalProperties"] = False
    try:
        text = json.dumps(_written(schema), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        reason = str(error)
    else:
        reason = _refusal(text)
    if reason:
        msg = (
            f"the parameters of tool {name!r} cannot be enforced by a grammar: {reason.strip()}; leave that out, or "
            'allow it to be ignored with "x-guidance": {"lenient": true} beside "properties"'
        )
        raise InvalidRequest(msg)
    return text


def _written(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON schema that also says how JSON is written; a user's own options stay beside that."""
    options = schema.get("x-guidance")
    return {**schema, "x-guidance": {**(options if isinstance(options, Mapping) else {}), **WRITTEN}}


@lru_cache(maxsize=256)
def _refusal(schema: str) -> str:
    """Return llguidance's reason to refuse a JSON schema, or nothing."""
    from llguidance import LLMatcher

    reason: str = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
    return reason
