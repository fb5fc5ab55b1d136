"""Reading an answer one character at a time: markers, JSON, white space.

Every reading method is a coroutine that asks for the next character by `yield`; the answer ends with an empty one.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Sequence

Parser = Generator[None, str, None]
Reader = Generator[None, str, str]
Sink = Callable[[str], object]

BLANK = " \t\r\n"
PAIRS = {"{": "}", "[": "]"}


class TextReader:
    """Where the reading stands."""

    def __init__(self) -> None:
        self._char = ""  # the next one; empty at the end
        self._unread: deque[str] = deque()  # what follows it, after `_go_back`
        self._source: list[str] | None = None  # what was read of a call that has not begun yet

    @property
    def _begun(self) -> bool:
        """Whether a call's name is known and its arguments are due."""
        return self._source is None

    def _go_back(self) -> None:
        """Read again what was read of a call."""
        self._unread.extendleft(reversed([*(self._source or ()), self._char]))
        self._char, self._source = self._unread.popleft(), None

    def _step(self) -> Parser:
        if self._source is not None:
            self._source.append(self._char)
        self._char = self._unread.popleft() if self._unread else (yield)

    def _space(self) -> Parser:
        while self._char and self._char in BLANK:
            yield from self._step()

    def _expect(self, char: str) -> Parser:
        """Read one character and the white space around it."""
        yield from self._space()
        if self._char != char:
            raise Broken
        yield from self._step()
        yield from self._space()

    def _string(self) -> Reader:
        if self._char != '"':
            raise Broken
        text: list[str] = []
        yield from self._value(text.append, JsonScan())
        try:
            return str(json.loads("".join(text), strict=False))
        except ValueError:
            raise Broken from None

    def _value(self, sink: Sink, scan: JsonScan) -> Parser:
        """Read one JSON value, as it stands."""
        if self._char and self._char in '{["':
            while not scan.complete:
                if not self._char:
                    raise Broken
                scan.feed(self._char)
                sink(self._char)
                yield from self._step()
            return
        if not self._char or self._char in ",}]":
            raise Broken
        while self._char and self._char not in ",}]" + BLANK:
            sink(self._char)
            yield from self._step()
        scan.complete = True

    def _until(self, markers: Sequence[str], sink: Sink) -> Reader:
        """Pass on text up to the first of `markers`, and return that, or nothing at the end of the answer."""
        held, heads = "", {marker[0] for marker in markers}
        while self._char:
            if not held and self._char not in heads:
                sink(self._char)
                yield from self._step()
                continue
            held += self._char
            while held and not any(marker.startswith(held) for marker in markers):
                sink(held[0])
                held = held[1:]
            yield from self._step()
            if held in markers:
                return held
        for char in held:
            sink(char)
        return ""


class Broken(Exception):
    """What is being read is no tool call, or not all of one."""


class JsonScan:
    """Follows a JSON value that is a container or a string, a character at a time."""

    def __init__(self) -> None:
        self.complete = False
        self._closers: list[str] = []
        self._quoted = self._escaped = False

    def feed(self, char: str) -> None:
        """Move on by a character; brackets that do not match raise `Broken`."""
        if self._quoted:
            self._quoted = self._escaped or char != '"'
            self._escaped = not self._escaped and char == "\\"
        elif char == '"':
            self._quoted = True
        elif char in PAIRS:
            self._closers.append(PAIRS[char])
        elif char in PAIRS.values() and self._closers.pop() != char:
            raise Broken
        self.complete = not (self._quoted or self._closers)

    def spoiler(self) -> str:
        """What to append so that no parser of partial JSON completes the value."""
        return "\\" * self._escaped + '"' * self._quoted + ("}" if self._closers[-1:] == ["]"] else "]")


class Flow:
    """Text on its way out, without the white space that belongs to markers."""

    def __init__(self, emit: Sink) -> None:
        self.shown = False
        self._emit = emit
        self._blank = ""
        self._after = False  # a marker, and nothing but white space since

    def push(self, char: str) -> None:
        """Add one character."""
        self._blank += char
        if char not in BLANK:
            self._emit(self._blank if self.shown or not self._after else char)
            self._blank, self._after, self.shown = "", False, True

    def edge(self, *, final: bool = False) -> None:
        """Meet a marker, or the end of the answer."""
        if final and self._blank and not self._after:
            self._emit(self._blank)
        self._blank, self._after = "", True


def ignore(_: str) -> None:
    """Take what nobody wants."""
