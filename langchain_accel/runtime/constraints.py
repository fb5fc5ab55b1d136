"""Grammars an answer must follow: a mask over the vocabulary before every token (llguidance, Earley with lexer).

A grammar is compiled where the user calls, so that its errors are raised there; the constraint that comes out is used
by the engine's thread alone.

A constraint with a limit is never cut: it always knows tokens that close the answer, no more than are left, and admits
a token only where it knows such tokens after it, too. So at the latest those tokens are the answer's end.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

from langchain_accel.devices.base import Logits
from langchain_accel.errors import InvalidRequest
from langchain_accel.runtime.closing import Closer, Way
from langchain_accel.runtime.matcher import Budget, Matcher

COMPILED = 64
"""How many compiled grammars an engine remembers."""

LONGEST, SECONDS = 2048, 2.0
"""How many tokens the shortest answer of a grammar may have, and how long it is searched."""


class Constraint(Protocol):
    """What the answer of one request must look like, token by token. One thread uses it at a time."""

    @property
    def finished(self) -> bool:
        """Whether the grammar is complete and nothing more may follow."""
        ...

    @property
    def closed_early(self) -> bool:
        """Whether a token was refused because too few were left to close the answer after it."""
        ...

    def mask(self, logits: Logits) -> None:
        """Set the logits of forbidden tokens to minus infinity, in place.

        Args:
            logits: `[vocab_size]` float32. End-of-sequence tokens stay allowed exactly where the grammar may end.
        """
        ...

    def accept(self, token: int) -> None:
        """Move on by `token`.

        Raises:
            AccelError: the grammar does not allow it here, or the answer could not be closed after it.
        """
        ...

    def admits(self, token: int) -> bool:
        """Whether the answer can be closed within its limit after `token`, which the mask allows."""
        ...

    def closing(self) -> int | None:
        """Return the next token of a way to close the answer: the end of sequence where it is complete.

        Always admitted while tokens are left; `None` without a limit.
        """
        ...

    def forced(self) -> list[int]:
        """Return the tokens that must follow, within the limit; each of them may then be accepted.

        What is forced is text: the tokens are those the tokenizer writes it with. The last ones are left out as long
        as they could become others with what follows, so that a model finds the tokens it was trained with.
        """
        ...


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a user asks for; hashable. Whether it makes sense is known when it is compiled.

    Attributes:
        kind: the language of `source`.
        source: a JSON schema, a regular expression (Rust's `regex` syntax), a Lark grammar (llguidance's dialect),
            or a JSON array of strings.
    """

    kind: Literal["json_schema", "regex", "lark", "choice"]
    source: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str | bool) -> Grammar:  # noqa: FBT001 - a schema may be true
        """JSON without free white space that follows `schema`.

        Args:
            schema: a JSON schema, as a mapping or as JSON text; `True` stands for any JSON object. Keys keep their
                order, because the answer's properties come in the order of the schema's.

        Raises:
            InvalidRequest: the schema is `False`, which nothing follows, or holds what JSON cannot.
        """
        if isinstance(schema, str):
            return cls("json_schema", schema)
        if not isinstance(schema, Mapping):
            if schema is not True:
                msg = f"a JSON schema is a mapping, JSON text, or True for any JSON object, got {schema!r}"
                raise InvalidRequest(msg)
            schema = {"type": "object"}
        try:
            return cls("json_schema", json.dumps(dict(schema), ensure_ascii=False))
        except (TypeError, ValueError) as error:
            msg = f"the JSON schema cannot be written as JSON: {error}"
            raise InvalidRequest(msg) from error

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that matches `pattern` from beginning to end."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Text that the rule `start` of a Lark grammar derives."""
        return cls("lark", text)

    @classmethod
    def choice(cls, options: Sequence[str]) -> Grammar:
        """One of `options`, to the letter."""
        return cls("choice", json.dumps(list(options), ensure_ascii=False))


class Grammars:
    """Compiles grammars for one tokenizer. Thread-safe; the costly preparation happens once, at the first grammar.

    Args:
        tokenizer: a fast transformers tokenizer; any other is refused at the first grammar.
        vocab_size: width of the logits; ids beyond the tokenizer's vocabulary are never allowed.
        eos_ids: the model's end-of-sequence ids, all of them allowed where the grammar may end.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = sorted(token for token in set(eos_ids) if 0 <= token < vocab_size)
        self._lock = threading.Lock()
        self._prepared: Any = None
        self._closer: Closer
        self._compiled = lru_cache(maxsize=COMPILED)(self._compile)
        self._start = lru_cache(maxsize=COMPILED)(self._measure)

    def compile(self, grammar: Grammar, *, limit: int | None = None) -> Constraint:
        """Return a fresh constraint at the beginning of `grammar`.

        Args:
            grammar: what the answer must look like.
            limit: most tokens the answer may have. It needs no end-of-sequence token: an answer that reaches the limit
                where the grammar may end is complete. `None` leaves it open, and then the answer may be cut.

        Raises:
            InvalidRequest: llguidance refuses the grammar (the message says why) or the tokenizer, or no answer within
                `limit` follows it.
        """
        with self._lock:
            matcher = self._compiled(grammar).deep_copy()
            budget = None if limit is None else self._budget(grammar, limit)
        width = max(self._vocab_size, self._prepared.vocab_size)
        return Matcher(matcher, self._closer, self._vocab_size, width, budget)

    def _budget(self, grammar: Grammar, limit: int) -> Budget:
        way = self._start(grammar, None)
        if way is None or len(way) > limit:
            way = self._start(grammar, LONGEST if way is None else len(way) - 1) or way
        if way is None:
            msg = f"no answer of at most {LONGEST} tokens that follows this {grammar.kind} grammar was found"
            raise InvalidRequest(msg)
        if len(way) > limit:
            msg = f"this {grammar.kind} grammar needs at least {len(way)} tokens, max_tokens leaves {limit}"
            raise InvalidRequest(msg)
        return Budget(self._closer, limit, way, self._closer.literals(grammar.source))

    def _measure(self, grammar: Grammar, below: int | None) -> Way | None:
        """Return an answer that is likely short, or one of at most `below` tokens, if we find any."""
        matcher = self._compiled(grammar)
        if below is None:
            return self._closer.greedy(matcher, LONGEST)
        return self._closer.search(matcher, below, self._closer.literals(grammar.source), SECONDS)

    def _compile(self, grammar: Grammar) -> Any:
        if self._prepared is None:
            self._prepared = self._prepare()
            self._closer = Closer(self._prepared, self._eos_ids, self._vocab_size)
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self._prepared, _translate(grammar), log_level=0)
            reason = matcher.get_error() if matcher.is_error() else ""
        except ValueError as error:
            reason = str(error)
        if reason:
            msg = f"this {grammar.kind} grammar cannot be used: {reason.strip()}"
            raise InvalidRequest(msg)
        return matcher

    def _prepare(self) -> Any:
        """Build llguidance's view of the tokenizer: about a second for a large vocabulary."""
        from llguidance.hf import from_tokenizer

        name = type(self._tokenizer).__name__
        if not self._eos_ids:
            msg = "grammars need an end-of-sequence token, and neither model nor tokenizer declares one"
            raise InvalidRequest(msg)
        if not getattr(self._tokenizer, "is_fast", False):
            msg = f"grammars need a fast tokenizer (tokenizer.json); {name} is not one"
            raise InvalidRequest(msg)
        width = max(self._vocab_size, len(self._tokenizer))
        try:
            return from_tokenizer(self._tokenizer, n_vocab=width, eos_token=self._eos_ids)
        except ValueError as error:
            msg = f"llguidance cannot use the tokenizer {name}: {error}"
            raise InvalidRequest(msg) from error


def _translate(grammar: Grammar) -> str:
    """Return `grammar` in llguidance's own notation.

    Raises:
        ValueError: the source is not of its kind.
    """
    from llguidance import LLMatcher

    translated: str
    match grammar.kind:
        case "json_schema":
            translated = LLMatcher.grammar_from_json_schema(grammar.source, defaults={"whitespace_flexible": False})
        case "regex":
            translated = LLMatcher.grammar_from_regex(grammar.source)
        case "lark":
            translated = LLMatcher.grammar_from_lark(grammar.source)
        case "choice":
            options = json.loads(grammar.source)
            if not isinstance(options, list) or not options or not all(isinstance(each, str) for each in options):
                msg = f"a choice is a non-empty list of strings, got {grammar.source}"
                raise ValueError(msg)
            # By number no character means anything else; strings of Lark do not hold all control characters.
            literals = ("".join(f"\\x{{{ord(each):x}}}" for each in option) for option in options)
            translated = LLMatcher.grammar_from_regex("|".join(literals))
    return translated
