"""The shortest way we find from anywhere in a grammar to an end of it, so that an answer is never cut.

llguidance says which tokens may come next, not how far the end is. That is searched here, on copies of its matcher:

1. `Closer.follow` asks whether what closed the answer before a token still does after it, as such or without its
   first token. That takes no mask, some microseconds, and is enough inside strings, numbers and lists of scalars.
2. Otherwise `Closer.greedy` walks: what the grammar forces, else the allowed token that looks most like closing
   (brackets, quotes, markers, small scalars; a bracket that opens comes last), until an end of the old way fits again.
3. Where that walk runs in circles (free text up to a marker, patterns), `Closer.search` goes best first over
   different states, two states being taken for the same where the same tokens are allowed.

A way that is returned is always a way: llguidance has accepted it, token by token. None of it is provably shortest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

Way = tuple[int, ...]
Bits = npt.NDArray[np.int32]

STATES, BRANCHES, AGAIN = 400, 16, 3
"""States a search looks into, continuations of each, and what meeting one again costs, in tokens."""

ENDINGS, LITERALS = 64, 64
"""How many endings of a known way are tried at every step of a walk, and literals at every state of a search."""

QUOTES, FREE = 100, 300
"""Ranks from here on begin with a double quote, and, above, are lowered by use."""

TEXT = 64
"""Where more of our few hundred tokens than these are allowed, the answer is inside text."""


class Closer:
    """Finds closing ways for the grammars of one tokenizer. Thread-safe: nothing changes after `__init__`.

    Args:
        tokenizer: llguidance's view of it.
        eos_ids: its end-of-sequence ids.
        vocab_size: width of the logits; ids from there on are never used.
    """

    def __init__(self, tokenizer: Any, eos_ids: Sequence[int], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._size = min(vocab_size, tokenizer.vocab_size)
        self.end = eos_ids[0]
        self._width = (tokenizer.vocab_size + 31) // 32
        ranks = _ranks(tokenizer, self._size, frozenset(eos_ids))
        order = sorted(ranks, key=ranks.__getitem__)
        self._order: Bits = np.array(order, dtype=np.int32)
        self._ranks = np.array([ranks[token] for token in order])
        # Inside text a bracket closes nothing, and what begins with a double quote does; elsewhere that opens text.
        starts = np.array([tokenizer.decode_bytes([token])[:1] == b'"' for token in order])
        self._text_ranks = np.where(starts, FREE - self._ranks, np.where(self._ranks < QUOTES, 2000, self._ranks))

    def literals(self, source: str) -> list[Way]:
        """Return what stands in a grammar's source letter by letter, as tokens: some of it may end free text."""
        # An escaped character stands for itself, unless it is one of these.
        plain = re.sub(r"\\[nrtdwsbDWSBpPuxfvaAzZ0-9]|\\", "\0", source)
        found = dict.fromkeys(re.findall(r"[^\0\"'()\[\]{}?*+^$.,|\n]+", plain))
        ways = (tuple(self._tokenizer.tokenize_str(each)) for each in sorted(found, key=len, reverse=True)[:LITERALS])
        return [way for way in ways if max(way) < self._size]

    def forced(self, matcher: Any) -> list[int]:
        """Return the tokens that must follow, nothing where the model does not know one of them."""
        tokens: list[int] = matcher.compute_ff_tokens()
        return tokens if max(tokens, default=-1) < self._size else []

    def follow(self, matcher: Any, token: int, way: Way, room: int) -> Way | None:
        """Return what is left of `way` after `token`, if it still closes the answer within `room` tokens.

        Args:
            matcher: where `way` leads to an end; not modified.
            token: what is chosen instead of the first token of `way`.
            way: the tokens that close the answer.
            room: tokens left after `token`.
        """
        for rest in (way[1:], way):
            if len(rest) <= room and self._closes(matcher, (token, *rest)):
                return rest
        return None

    def greedy(self, matcher: Any, room: int, known: Way = ()) -> Way | None:
        """Walk the way that looks like closing, at most `room` tokens long.

        Args:
            matcher: where the answer stands; not modified.
            room: tokens left.
            known: tokens that closed the answer a token ago; their ends may do again.
        """
        matcher, way, bits = matcher.deep_copy(), list[int](), np.zeros(self._width, np.int32)
        used = np.zeros(len(self._order), np.int32)
        endings = [known[-size:] for size in range(1, min(len(known), ENDINGS) + 1)]
        while not matcher.is_accepting():
            for ending in endings:
                if len(way) + len(ending) <= room and self._closes(matcher, ending):
                    return (*way, *ending)
            step = self.forced(matcher) or [self._best(matcher, bits, used)]
            way += step
            if len(way) > room or not matcher.consume_tokens(step):
                return None
        return tuple(way)

    def search(self, matcher: Any, room: int, literals: Sequence[Way], seconds: float) -> Way | None:
        """Look for a way best first, at most `room` tokens long.

        Args:
            matcher: where the answer stands; not modified.
            room: tokens left.
            literals: see `literals`; each is tried in one step.
            seconds: when to give up; a state of a grammar with many readings of one text may take long.
        """
        until = perf_counter() + seconds
        bits, seen, best = np.zeros(self._width, np.int32), Counter[bytes](), dict[tuple[bytes, int], int]()
        ids, left = count(), STATES
        # Cost, a tie-break, way, its length in bytes, matcher, and the allowed tokens once they are known.
        heap: list[tuple[int, int, Way, int, Any, bytes]] = [(0, next(ids), (), 0, matcher.deep_copy(), b"")]
        while heap and left and perf_counter() < until:
            cost, _, way, size, here, allowed = heappop(heap)
            if here.is_accepting():
                return way
            if not allowed:
                if not _mask(here, bits):
                    continue
                allowed = bits.tobytes()
                if best.get((allowed, len(way)), -1) >= size:
                    continue
                best[allowed, len(way)] = size
                seen[allowed] += 1
                if seen[allowed] > 1:
                    heappush(heap, (cost + AGAIN * seen[allowed], next(ids), way, size, here, allowed))
                    continue
            left -= 1
            mask = np.frombuffer(allowed, dtype=np.int32)
            tokens = self._order[_spread(self._allowed(mask))].tolist() or [_any(mask, self._size, self.end)]
            for step in (*((token,) for token in tokens), *literals):
                there = here.deep_copy()
                if there.try_consume_tokens(list(step)) != len(step):
                    continue
                forced = self.forced(there)
                longer = (*way, *step, *forced)
                if len(longer) <= room and (not forced or there.consume_tokens(forced)):
                    grown = size + len(self._tokenizer.decode_bytes([*step, *forced]))
                    heappush(heap, (cost + len(step) + len(forced), next(ids), longer, grown, there, b""))
        return None

    def _closes(self, matcher: Any, way: Way) -> bool:
        """Whether the grammar allows `way` from here and may end after it."""
        return bool(matcher.validate_tokens([*way, self.end]) > len(way))

    def _allowed(self, bits: Bits) -> Bits:
        """Return the places in `order` of the tokens that a mask allows."""
        order = self._order
        return np.flatnonzero((bits[order >> 5] >> (order & 31)) & 1).astype(np.int32)

    def _best(self, matcher: Any, bits: Bits, used: Bits) -> int:
        """Return the allowed token that closes best; text loses rank by use, so that no walk circles on one token."""
        if not _mask(matcher, bits):
            return self.end
        places = self._allowed(bits)
        if not len(places):
            return _any(bits, self._size, self.end)
        ranks = (self._text_ranks if len(places) > TEXT else self._ranks)[places]
        place = places[np.argmin(ranks + (ranks >= FREE) * 1000 * used[places])]
        used[place] += 1
        return int(self._order[place])


def _mask(matcher: Any, bits: Bits) -> bool:
    """Write the allowed tokens to `bits`; False where llguidance gives up."""
    matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
    return not matcher.is_error()


def _any(bits: Bits, size: int, end: int) -> int:
    """Return the first token below `size` that a mask allows, `end` where there is none."""
    tokens = np.flatnonzero(np.unpackbits(bits.view(np.uint8), count=size, bitorder="little"))
    return int(tokens[0]) if len(tokens) else end


def _spread(places: Bits) -> Bits:
    """Take `BRANCHES` of many: the first half of them as ranked, the others from all over."""
    if len(places) <= BRANCHES:
        return places
    first, rest = np.split(places, [BRANCHES // 2])
    return np.concatenate([first, rest[:: len(rest) // (BRANCHES // 2) + 1]])


def _ranks(tokenizer: Any, size: int, eos_ids: frozenset[int]) -> dict[int, int]:
    """Rank a few hundred tokens by how well they close; every single byte is among them."""
    ranks: dict[int, int] = {}
    longest: dict[bytes, int] = {}
    small = {each.encode(): FREE + 1 + place for place, each in enumerate(["null", "0", "true", "[]", "{}", "1"])}
    for token in range(size):
        if token in eos_ids:
            continue
        if tokenizer.is_special_token(token):
            ranks[token] = FREE  # allowed only where the grammar names it
            continue
        text = tokenizer.decode_bytes([token])
        if text == b'""':
            ranks[token] = QUOTES
        elif text in small:
            ranks[token] = small[text]
        elif text == b'"' or (text and not text.strip(b"\"'}])>") and text.strip(b"\"'")):
            ranks[token] = QUOTES + len(text) if text.startswith(b'"') else max(99 - len(text), 0)
        elif len(text) == 1:
            ranks[token] = _byte_rank(text)
        elif text.isalpha() or text.isdigit():
            sort = text[:1].isdigit() * b"0" or text[:1].islower() * b"a" or b"A"
            if len(text) > len(tokenizer.decode_bytes([longest[sort]]) if sort in longest else b""):
                longest[sort] = token
    ranks |= {token: 1040 + place for place, token in enumerate(longest.values())}
    return ranks


def _byte_rank(text: bytes) -> int:
    """Rank a byte: punctuation separates parts of a pattern, and what opens comes last."""
    if text == b",":
        return 250  # whatever is followed by one needs it
    if text in b"{[(<":
        return 1_000_000
    if text.isdigit():
        return 1050 + text[0] - ord("0")
    if text.isalpha():
        return 1100 + text[0]
    punctuation = b"@./-:T+Z_;=#%&~!*?|^$\\"
    return 1000 + punctuation.index(text) if text in punctuation else 1300 + text[0]
