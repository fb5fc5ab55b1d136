"""What a call asks the answer to look like: tools, structured output, constraints; and the grammar that makes it so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_accel._output import OutputSplitter
from langchain_accel._tool_formats import FORMATS, Thinking, ToolFormat, detect, detect_thinking, visible_tokens
from langchain_accel._tool_grammars import OPEN, auto_grammar, forced_grammar, json_grammar
from langchain_accel.errors import InvalidRequest
from langchain_accel.runtime.constraints import Grammar
from langchain_accel.runtime.request import SamplingParams

Method = Literal["json_schema", "function_calling", "json_mode"]
ToolGrammar = Literal["auto", "forced"]

CONSTRAINTS = ("regex", "lark", "choice")
"""Keywords of a call that constrain the whole answer, by the name of `Grammar`'s constructor."""

OUTPUT = ("tools", "tool_choice", "parallel_tool_calls", "response_format", *CONSTRAINTS)
"""Keywords of a call that say what the answer must look like."""


def explicit_grammar(kwargs: Mapping[str, Any]) -> Grammar | None:
    """Return the grammar that one of the keywords `regex`, `lark` or `choice` asks for.

    Raises:
        InvalidRequest: more than one is given.
    """
    given = [name for name in CONSTRAINTS if kwargs.get(name) is not None]
    if len(given) > 1:
        msg = f"an answer can follow one constraint, got {' and '.join(given)}"
        raise InvalidRequest(msg)
    if not given:
        return None
    constructor = getattr(Grammar, given[0])
    grammar: Grammar = constructor(kwargs[given[0]])
    return grammar


@dataclass(frozen=True)
class OutputForm:
    """The form of one answer: what the template renders, what the grammar enforces, how the output is read.

    Attributes:
        tools: in OpenAI's form, as the template renders them.
        forced: names of the tools one of which must be called; empty where the model may choose.
        parallel: whether several calls may follow each other.
        schema: JSON schema of the answer, as text, or nothing.
        constraint: a grammar for the whole answer.
        tool_format: how the model writes calls.
        thinking: the model's reasoning markers, where its template knows any.
        bind_free_calls: whether a call that the model chooses to make is bound to the tool's schema, too.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    forced: tuple[str, ...] = ()
    parallel: bool = True
    schema: str | None = None
    constraint: Grammar | None = None
    tool_format: ToolFormat | None = None
    thinking: Thinking | None = None
    bind_free_calls: bool = True

    @classmethod
    def of(
        cls, kwargs: Mapping[str, Any], template: str | None, tool_format: str | None, tool_grammar: ToolGrammar
    ) -> OutputForm:
        """Read the keywords in `OUTPUT`.

        Args:
            kwargs: keywords of a call.
            template: the chat template in use.
            tool_format: a name of `FORMATS` that overrides what the template shows.
            tool_grammar: `"auto"` binds calls the model chooses to make, `"forced"` only calls it must make.

        Raises:
            InvalidRequest: keywords contradict each other, or the model cannot do what they ask.
        """
        constraint = explicit_grammar(kwargs)
        tools = list(kwargs.get("tools") or ())
        names = [_name(tool) for tool in tools]
        choice = kwargs.get("tool_choice")
        forced = _forced(choice, names)
        schema = _schema(kwargs.get("response_format"))
        if constraint is not None and (tools or schema):
            msg = "regex, lark and choice constrain the whole answer: they do not go with tools or response_format"
            raise InvalidRequest(msg)
        if choice in ("none", False):
            tools = []
        form = _format(tool_format, template) if tools else None
        if tools and form is None:
            msg = (
                "the chat template of this model renders no tools in a known format; use a model that was trained on "
                f"tools, or pass chat_template= with tools and tool_format= (one of {', '.join(FORMATS)})"
            )
            raise InvalidRequest(msg)
        return cls(
            tools=tools,
            forced=forced,
            parallel=kwargs.get("parallel_tool_calls") is not False,
            schema=schema,
            constraint=constraint,
            tool_format=form,
            thinking=detect_thinking(template) if constraint is None else None,
            bind_free_calls=tool_grammar == "auto",
        )

    def grammar(self, tokenizer: Any, prompt: str) -> Grammar | None:
        """Return what the answer to a rendered prompt must follow, or None where it is free."""
        reasoning = self.thinking if self.thinking and self.thinking.left_open(prompt) else None
        if self.constraint is not None:
            return self.constraint
        if self.tool_format is not None and (self.forced or self.schema):
            return forced_grammar(
                self.tool_format,
                self.tools,
                self.forced,
                tokenizer,
                parallel=self.parallel,
                reasoning=reasoning,
                schema=None if self.forced else self.schema,
            )
        if self.tool_format is not None and self.bind_free_calls:
            return auto_grammar(
                self.tool_format,
                self.tools,
                tokenizer,
                thinking=self.thinking,
                reasoning_open=reasoning is not None,
            )
        if self.schema is not None:
            return json_grammar(self.schema, tokenizer, reasoning=reasoning)
        return None

    @property
    def whole(self) -> bool:
        """Whether the whole answer follows a grammar, so that a stop string could only cut it."""
        return bool(self.constraint or self.schema or self.forced)

    def unstopped(self, params: SamplingParams, stop: Sequence[str] | None) -> SamplingParams:
        """Return sampling settings without the model's default stop strings.

        Raises:
            InvalidRequest: the call itself asks for stop strings.
        """
        if stop:
            msg = f"stop={list(stop)!r} would cut an answer that must follow a grammar: leave it out"
            raise InvalidRequest(msg)
        return replace(params, stop=())

    def visible(self, tokenizer: Any) -> dict[int, str]:
        """Return the special tokens that must stay readable in the answer's text."""
        if self.tool_format is None and self.thinking is None:
            return {}
        return visible_tokens(self.tool_format, tokenizer, self.thinking)

    def splitter(self, prompt: str) -> OutputSplitter | None:
        """Return what cuts the answer to a rendered prompt apart, or None where all of it is text."""
        if self.tool_format is None and self.thinking is None:
            return None
        reasoning_open = self.thinking is not None and self.thinking.left_open(prompt)
        return OutputSplitter(self.tool_format, self.thinking, reasoning_open=reasoning_open)


def structured_output(
    llm: Any, schema: dict[str, Any] | type[Any], method: Method, *, include_raw: bool, strict: bool | None
) -> Runnable[LanguageModelInput, Any]:
    """Return `llm` bound to a schema, with the parser that reads its answers.

    Args:
        llm: a chat model of this package.
        schema: a pydantic class, a TypedDict class, or a JSON schema with a title.
        method: `"json_schema"`: the answer is JSON that follows the schema; `"function_calling"`: the answer is a call
            of one tool with this schema; `"json_mode"`: the answer is any JSON object, checked afterwards.
        include_raw: return `{"raw", "parsed", "parsing_error"}` instead of raising where parsing fails.
        strict: noted in the schema for templates that read it; the grammar is strict in any case.

    Raises:
        InvalidRequest: the method is unknown.
    """
    if isinstance(schema, dict) and not {"title", "name"} & schema.keys():
        schema = {"title": "answer", **schema}
    pydantic: Any = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    noted = {"ls_structured_output_format": {"kwargs": {"method": method, "strict": strict}, "schema": schema}}
    parser: BaseOutputParser[Any]
    bound: Runnable[LanguageModelInput, AIMessage]
    if method == "function_calling":
        name = _name(convert_to_openai_tool(schema, strict=strict))
        bound = llm.bind_tools([schema], tool_choice=name, parallel_tool_calls=False, strict=strict, **noted)
        parser = (
            PydanticToolsParser(tools=[pydantic], first_tool_only=True)
            if pydantic
            else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        )
    elif method in ("json_schema", "json_mode"):
        as_json = convert_to_json_schema(schema)
        wanted = {"type": "json_schema", "json_schema": {"name": as_json.get("title", "answer"), "schema": as_json}}
        bound = llm.bind(response_format=wanted if method == "json_schema" else {"type": "json_object"}, **noted)
        parser = PydanticOutputParser(pydantic_object=pydantic) if pydantic else JsonOutputParser()
    else:
        msg = f"method must be 'json_schema', 'function_calling' or 'json_mode', got {method!r}"
        raise InvalidRequest(msg)
    if not include_raw:
        return bound | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    unparsed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([unparsed], exception_key="parsing_error")


def _name(tool: Mapping[str, Any]) -> str:
    return str(tool["function"]["name"])


def _forced(choice: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Return the tools one of which must be called.

    Raises:
        InvalidRequest: the choice is of no known form, names no tool, or there is no tool.
    """
    if choice in (None, "auto", "none", False):
        return ()
    if choice in ("any", "required", True):
        wanted: tuple[str, ...] = tuple(names)
    elif isinstance(choice, str):
        wanted = (choice,)
    elif isinstance(choice, Mapping) and isinstance(choice.get("function"), Mapping):
        wanted = (str(choice["function"].get("name")),)
    else:
        known = "'auto', 'none', 'any', 'required', a tool's name or {'function': {'name': ...}}"
        msg = f"tool_choice must be {known}, got {choice!r}"
        raise InvalidRequest(msg)
    missing = sorted(set(wanted) - set(names))
    if missing or not wanted:
        msg = f"tool_choice={choice!r} asks for a tool that is not bound; bound are: {', '.join(names) or 'none'}"
        raise InvalidRequest(msg)
    return wanted


def _schema(response_format: Any) -> str | None:
    """Return the JSON schema that a `response_format` asks for, as text; a form that is not known is an error."""
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return json.dumps({"type": "object"})
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            written = Grammar.json_schema(schema).source  # refuses what is not JSON, such as a dictionary inside itself
            return Grammar.json_schema(_closed(json.loads(written))).source
    msg = (
        "response_format must be {'type': 'json_schema', 'json_schema': {'schema': ...}}, {'type': 'json_object'} or "
        f"{{'type': 'text'}}, got {response_format!r}"
    )
    raise InvalidRequest(msg)


def _closed(schema: Any) -> Any:
    """Return a schema in which objects have no properties but those they declare, where it does not say otherwise.

    Without this a model may invent keys until its tokens run out, and most readers drop them.
    """
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {key: _closed_within(key, value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), Mapping) and not OPEN & schema.keys():
        closed["additionalProperties"] = False
    return closed


def _closed_within(key: str, value: Any) -> Any:
    if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, Mapping):
        return {name: _closed(each) for name, each in value.items()}
    # What allOf composes must stay open: each part would forbid the others' properties.
    return value if key in ("allOf", "enum", "const", "default", "examples") else _closed(value)


def _format(name: str | None, template: str | None) -> ToolFormat | None:
    if name is None:
        return detect(template)
    if name not in FORMATS:
        msg = f"tool_format must be one of {', '.join(FORMATS)}, got {name!r}"
        raise InvalidRequest(msg)
    return FORMATS[name]
