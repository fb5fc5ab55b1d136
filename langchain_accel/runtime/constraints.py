"""Grammars an answer must follow: a mask over the vocabulary before every token (llguidance, Earley with lexer).

A grammar is compiled where the user calls, so that its errors are raised there; the constraint that comes out is used
by the engine's thread alone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from langchain_accel.devices.base import Logits
from langchain_accel.errors import AccelError, InvalidRequest

COMPILED = 64
"""How many compiled grammars an engine remembers."""


class Constraint(Protocol):
    """What the answer of one request must look like, token by token. One thread uses it at a time."""

    @property
    def finished(self) -> bool:
        """Whether the grammar is complete and nothing more may follow."""
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
            AccelError: the grammar does not allow it here.
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
        self._compiled = lru_cache(maxsize=COMPILED)(self._compile)

    def compile(self, grammar: Grammar) -> Constraint:
        """Return a fresh constraint at the beginning of `grammar`.

        Raises:
            InvalidRequest: llguidance refuses the grammar (the message says why) or the tokenizer.
        """
        with self._lock:
            matcher = self._compiled(grammar).deep_copy()
        return _Matcher(matcher, self._vocab_size, max(self._vocab_size, self._prepared.vocab_size))

    def _compile(self, grammar: Grammar) -> Any:
        if self._prepared is None:
            self._prepared = self._prepare()
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


class _Matcher:
    """A `Constraint` that asks llguidance.

    Args:
        matcher: an `LLMatcher` of its own, at the beginning of its grammar.
        vocab_size: width of the logits.
        width: bits of llguidance's mask, at least `vocab_size`.
    """

    def __init__(self, matcher: Any, vocab_size: int, width: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._bits: npt.NDArray[np.int32] = np.zeros((width + 31) // 32, dtype=np.int32)

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())

    def mask(self, logits: Logits) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._require_sound("the grammar went beyond llguidance's limits")
        allowed = np.unpackbits(self._bits.view(np.uint8), count=self._vocab_size, bitorder="little")
        np.copyto(logits, -np.inf, where=allowed == 0)

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            self._require_sound(f"token {token} does not follow the grammar")

    def _require_sound(self, what: str) -> None:
        """Raise where llguidance has given up; it stays in that state, so `finished` would be misread."""
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().split("\n", 1)[0]
            msg = f"{what}: {reason}"
            raise AccelError(msg)
