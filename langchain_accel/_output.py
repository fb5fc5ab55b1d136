"""What a model wrote, cut into text, reasoning and tool calls while it is being written.

The parser is a coroutine that is sent one character at a time, so where chunks are cut cannot matter. It is tolerant:
keys of a call in any order, unknown keys, white space, `arguments` or `parameters`, several calls where one is usual,
a missing end marker. White space that touches a marker belongs to it, except between two shown parts of the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from uuid import uuid4

from langchain_accel._reading import PAIRS, Broken, Flow, JsonScan, Parser, Reader, TextReader, ignore
from langchain_accel._tool_formats import ARGS, CALL_ID, NAME, Thinking, ToolFormat
from langchain_accel.errors import AccelError


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text to show."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """A part of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """A part of a tool call.

    Attributes:
        index: which call of the answer, from 0.
        id: of the call; only in its first piece.
        name: of the tool; only in the call's first piece, and not where the model named none.
        arguments: the next characters of the arguments' JSON, as the model wrote them. Of a broken call, all together
            are such that no parser of partial JSON makes an object of them: LangChain gets an invalid tool call. One
            that was cut off ends in a bracket that does not match; one that cannot be read is all that was written.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


Piece = TextPiece | ReasoningPiece | ToolCallPiece


@dataclass(slots=True)
class Folded:
    """A whole answer; calls are dictionaries of the form of LangChain's `ToolCall` and `InvalidToolCall`."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    invalid_tool_calls: list[dict[str, Any]] = field(default_factory=list)


def fold(pieces: Iterable[Piece]) -> Folded:
    """Return the answer that all pieces together make; its calls are those that LangChain reads in their chunks."""
    folded = Folded()
    for piece in merged(sorted(pieces, key=_kind)):
        if isinstance(piece, TextPiece):
            folded.text = piece.text
        elif isinstance(piece, ReasoningPiece):
            folded.reasoning = piece.text
        else:
            try:
                arguments = json.loads(piece.arguments, strict=False)
            except (ValueError, RecursionError):
                arguments = None
            call = {"name": piece.name, "args": piece.arguments, "id": piece.id}
            if isinstance(arguments, dict):
                folded.tool_calls.append({**call, "args": arguments, "type": "tool_call"})
            else:
                folded.invalid_tool_calls.append({**call, "error": None, "type": "invalid_tool_call"})
    return folded


def merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Return the pieces with neighbours of one kind, or of one call, made one."""
    return [_joined(list(group)) for _, group in groupby(pieces, _kind)]


def _kind(piece: Piece) -> int:
    return piece.index if isinstance(piece, ToolCallPiece) else -1 if isinstance(piece, TextPiece) else -2


def _joined(pieces: Sequence[Piece]) -> Piece:
    first = pieces[0]
    if isinstance(first, ToolCallPiece):
        arguments = "".join(piece.arguments for piece in pieces if isinstance(piece, ToolCallPiece))
        return ToolCallPiece(first.index, first.id, first.name, arguments)
    return type(first)("".join(piece.text for piece in pieces if not isinstance(piece, ToolCallPiece)))


class OutputSplitter(TextReader):
    """Cuts one answer into pieces. One thread uses it.

    Args:
        tool_format: how the model writes tool calls; `None` where calls are text.
        thinking: markers of its reasoning; `None` where they are text.
        reasoning_open: whether the prompt has opened its reasoning.
    """

    def __init__(
        self, tool_format: ToolFormat | None = None, thinking: Thinking | None = None, *, reasoning_open: bool = False
    ) -> None:
        super().__init__()
        self._format = tool_format
        self._pieces: list[Piece] = []
        self._text = Flow(lambda text: self._pieces.append(TextPiece(text)))
        self._reasoning = Flow(lambda text: self._pieces.append(ReasoningPiece(text)))
        self._json = JsonScan()  # the arguments of the call that has begun
        self._index = -1
        self._closed = False
        self._parser = self._answer(tool_format, thinking, reasoning_open=reasoning_open)
        next(self._parser)

    def push(self, text: str) -> list[Piece]:
        """Add text and return what is certain now.

        Raises:
            AccelError: the answer was ended by `finish`.
        """
        if self._closed:
            msg = "this answer has ended; it takes no further text"
            raise AccelError(msg)
        for char in text:
            self._parser.send(char)
        return self._take()

    def finish(self) -> list[Piece]:
        """End the answer and return what was held back; nothing when called again."""
        if not self._closed:
            self._closed = True
            self._parser.send("")
        return self._take()

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return merged(pieces)

    def _answer(self, form: ToolFormat | None, thinking: Thinking | None, *, reasoning_open: bool) -> Parser:
        """Read everything."""
        markers = [form.opener, form.closer] if form else []
        markers += [thinking.opener, thinking.closer] if thinking else []
        markers = [each for each in markers if each]
        self._char = yield
        if thinking and reasoning_open:
            yield from self._reason(thinking)
        while self._char:
            marker = ""
            if form and form.layout == "bare" and not self._text.shown:
                marker = yield from self._bare(form)
            if not marker:
                marker = yield from self._until(markers, self._text.push)
                self._text.edge(final=not marker)
            if thinking and marker == thinking.opener:
                yield from self._reason(thinking)
            while form and marker == form.opener:
                marker = yield from self._call(form)
        yield  # the last character has been sent

    def _reason(self, thinking: Thinking) -> Parser:
        self._reasoning.edge()
        marker = yield from self._until([thinking.closer], self._reasoning.push)
        self._reasoning.edge(final=not marker)
        self._text.edge()

    # ------------------------------------------------------------------ calls

    def _call(self, form: ToolFormat) -> Reader:
        """Read what follows an opener; return the marker at which a broken call ends, or nothing."""
        self._source = [form.opener]
        try:
            yield from self._space()
            if self._char == "[" and form.layout in ("listed", "named"):
                yield from self._list(form.opener)
            elif self._char != "{" and form.layout in ("listed", "named"):
                yield from self._named()
            else:
                yield from self._object()
        except Broken:
            return (yield from self._rest(form))
        self._text.edge()
        return (yield from self._bare(form)) if form.layout == "bare" else ""

    def _bare(self, form: ToolFormat) -> Reader:
        """Read calls that have no opener, as many as there are; what is none is left to be read as text."""
        while True:
            self._source = []
            try:
                yield from self._space()
                if self._char == ";" and self._index >= 0:
                    yield from self._step()
                    yield from self._space()
                yield from self._object(bare=True)
            except Broken:
                if self._begun:
                    return (yield from self._rest(form))
                self._go_back()
                return ""
            self._text.edge()

    def _rest(self, form: ToolFormat) -> Reader:
        """End a broken call. Up to the next marker all is its own, unless its arguments are there."""
        self._text.edge()
        if self._begun and self._json.complete:
            return ""
        markers = [marker for marker in (form.opener, form.closer) if marker]
        marker = yield from self._until(markers, self._argue if self._begun else ignore)
        if self._begun:
            self._argue(self._json.spoiler())
        else:
            source = "".join(self._source or ())
            self._begin(None, source.removesuffix(marker) if marker == form.opener else source)
        return marker

    def _begin(self, name: str | None, arguments: str = "") -> None:
        form = self._format
        assert form
        self._source, self._json = None, JsonScan()
        self._json.complete = bool(arguments)
        self._index += 1
        call_id = form.id_prefix + uuid4().hex[: form.id_digits]
        self._pieces.append(ToolCallPiece(self._index, call_id, name, arguments))

    def _argue(self, text: str) -> None:
        self._pieces.append(ToolCallPiece(self._index, None, None, text))

    def _list(self, opener: str) -> Parser:
        while self._char != "]":
            yield from self._step()
            yield from self._space()
            if self._char != "]":
                self._source = [opener]
                yield from self._object()
                yield from self._space()
            if self._char not in ("]", ","):
                raise Broken
        yield from self._step()

    def _named(self) -> Parser:
        name: list[str] = []
        junk: list[str] = []
        while self._char and self._char not in PAIRS:
            name.append(self._char)
            yield from self._step()
        if self._char == "[":
            marker = yield from self._until([CALL_ID, ARGS], junk.append)
            if marker == CALL_ID:  # the model's own id: not always unique
                marker = yield from self._until([ARGS], ignore)
            if not marker:
                raise Broken
        if junk or not NAME.fullmatch("".join(name).strip()):
            raise Broken
        self._begin("".join(name).strip())
        yield from self._value(self._argue, self._json)

    def _object(self, *, bare: bool = False) -> Parser:
        """Read a call that is a JSON object; without an opener (`bare`) only one that begins as calls do."""
        name, early = "", list[str]()  # arguments that come before the name
        yield from self._expect("{")
        while self._char != "}":
            key = yield from self._string()
            yield from self._expect(":")
            waiting = not self._begun
            if key == "name" and not name:
                name = yield from self._string()
                if early:
                    self._begin(name, "".join(early))
            elif waiting and name and key in ("arguments", "parameters"):
                self._begin(name)
                yield from self._value(self._argue, self._json)
            elif waiting and bare:
                if key != "type" or (yield from self._string()) != "function":
                    raise Broken
            else:
                sink = early.append if key in ("arguments", "parameters") and not early else ignore
                yield from self._value(sink, JsonScan())
            yield from self._space()
            if self._char != "}":
                yield from self._expect(",")
        yield from self._step()
        if not self._begun:
            if bare or not name:
                raise Broken
            self._begin(name, "{}")
