"""Text out of tokens, piece by piece: no broken characters, no stop string ever shown.

A token is not a piece of text: one character may take several tokens, and whether a token begins with a space depends
on what stands before it. So a short window is decoded anew for every token, what was shown before stays in it as
context, and only the difference is shown (the prefix offset of Text Generation Inference and vLLM).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from langchain_accel.errors import AccelError

Decode = Callable[[Sequence[int]], str]

MARK = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are not (yet) a character."""

UNFINISHED = 3
"""UTF-8 characters have at most four bytes and a token at least one: so many tokens may wait for the next."""


def decoder(tokenizer: Any) -> Decode:
    """Return the fastest function equal to `tokenizer.decode(ids, skip_special_tokens=True)`.

    A fast tokenizer's Rust backend is called directly, unless its class or settings change what the backend returns.

    Args:
        tokenizer: a transformers tokenizer, fast or slow.
    """
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    if (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.decode is PreTrainedTokenizerFast.decode
        and kind._decode is PreTrainedTokenizerFast._decode  # noqa: SLF001 - only compared: is it overridden?
        and not _cleans(tokenizer)
    ):
        direct: Decode = tokenizer.backend_tokenizer.decode  # skips special tokens unless told otherwise
        return direct
    return partial(tokenizer.decode, skip_special_tokens=True)


def _cleans(tokenizer: Any) -> bool:
    """Whether a fast tokenizer removes spaces before punctuation from what its backend decodes.

    transformers 5 does so for BPE only where a second setting asks for it; older versions do not know that setting.
    """
    spared = type(tokenizer.backend_tokenizer.model).__name__ == "BPE" and not getattr(
        tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True
    )
    return bool(tokenizer.clean_up_tokenization_spaces) and not spared


def showing(decode: Decode, visible: Mapping[int, str]) -> Decode:
    """Return `decode` with some special tokens shown as their text instead of left out.

    Args:
        decode: leaves special tokens out.
        visible: token ids with their text, such as the markers of tool calls.
    """
    if not visible:
        return decode

    def shown(tokens: Sequence[int]) -> str:
        runs = ((marker, list(run)) for marker, run in groupby(tokens, visible.get))
        return "".join(decode(run) if marker is None else marker * len(run) for marker, run in runs)

    return shown


class Text:
    """Incremental detokeniser of one answer, with stop strings. One thread uses it.

    Everything shown, joined, is `decode` of all tokens up to the stop string. This is exact for byte-level tokenizers,
    whatever the bytes, and for byte fallback (sentencepiece) where the bytes are valid UTF-8; where they are not,
    characters shown before the bad byte stay shown.

    Of all stop strings in the text the one that ends first stops it; of several ending together, the longest. This
    does not depend on how the text is cut into tokens.

    Args:
        decode: text of a sequence of token ids, special tokens left out.
        stop: strings that end the answer, none of them empty.

    Attributes:
        stopped: the stop string that matched, or `None`.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self.stopped: str | None = None
        self._closed = False
        self._decode = decode
        self._window: list[int] = []
        self._context = 0  # tokens of the window that are settled; the others wait for the rest of a character
        self._text = ""  # the window, decoded
        self._given = 0  # characters of it already handed on
        self._watch = _Watch(stop) if stop else None
        self._stops = True

    def push(self, token: int, *, stops: bool = True) -> str:
        """Add one token and return the text that may be shown now.

        Args:
            token: its id; one that has no text, such as a special token, changes nothing.
            stops: whether stop strings are honoured in the characters that this token completes. Where they are not,
                no later match begins in these characters either.

        Raises:
            AccelError: the answer has ended, by a stop string or `finish`.
        """
        if self._closed:
            msg = f"this answer has ended (stop string: {self.stopped!r}); it takes no further token"
            raise AccelError(msg)
        self._stops = stops
        return self._guard(self._complete(token))

    def finish(self) -> str:
        """End the answer and return what was held back; empty after a stop string, and when called again."""
        if self._closed:
            return ""
        shown = self._guard(self._text[self._given :])
        if self._watch is not None and self.stopped is None:
            shown += self._watch.flush()
        self._closed = True
        return shown

    def _guard(self, fresh: str) -> str:
        """Return what of `fresh` may be shown with regard to stop strings."""
        if self._watch is None:
            return fresh
        if not self._stops:
            return self._watch.flush() + fresh
        shown, self.stopped = self._watch.push(fresh)
        self._closed = self.stopped is not None
        return shown

    def _complete(self, token: int) -> str:
        """Return the characters that `token` completes."""
        window = self._window
        window.append(token)
        text = self._decode(window)
        if not text.startswith(self._text[: self._given]):
            # Byte fallback decodes a run of bytes as a whole: an unfinished character after a finished one turns both
            # into marks. The finished one was shown, so the run goes on without it.
            self._keep(self._context, text)
            self._given, text = 0, self._text
        elif text == self._text and not self._decode([token, token]):  # twice: a leading space alone may vanish
            window.pop()
            return ""
        settled = len(text.rstrip(MARK))
        fresh, waiting = text[self._given : settled], len(text) - max(self._given, settled)
        if not waiting:
            self._keep(self._context, text)
            self._context = len(window)
        elif fresh:
            self._keep(len(window) - 1, text)  # text and then marks: the marks are all of this token
        else:
            self._text = text
            return self._give_up(waiting) if len(window) - self._context > UNFINISHED else ""
        self._given = len(self._text) - waiting
        return fresh

    def _keep(self, start: int, text: str) -> None:
        """Let the window, which reads `text`, begin at its token `start`."""
        del self._window[:start]
        self._text = self._decode(self._window) if start else text
        self._context = 0

    def _give_up(self, waiting: int) -> str:
        """Drop the oldest waiting token, which cannot belong to a character any more, and return what it leaves.

        The last bytes, which a character may still need, are in the tokens after it.

        Args:
            waiting: how many marks the window ends with that were not handed on.
        """
        self._keep(self._context + 1, "")
        if self._text.strip(MARK):  # byte fallback: without the bad byte before it the run is a character
            self._context, self._given = len(self._window), len(self._text)
            return MARK + self._text
        # The tokens left may read as fewer marks, or as more where they now start inside a character. Either way as
        # many marks as before are owed: those that fit stay waiting, the others are given.
        owed = min(waiting, len(self._text))
        self._given = len(self._text) - owed
        return MARK * (waiting - owed)


class _Watch:
    """Looks for stop strings in a stream of text and holds back what may become one.

    Args:
        stop: non-empty strings.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(dict.fromkeys(stop))
        self._first = frozenset(text[0] for text in self._stop)
        self._reach = max(map(len, self._stop)) - 1
        self._held = ""

    def push(self, fresh: str) -> tuple[str, str | None]:
        """Return the text that is safe, and the stop string that ends it, if any."""
        text = self._held + fresh
        found = [(place + len(stop), place, stop) for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            _, place, stop = min(found)
            return text[:place], stop
        for place in range(max(0, len(text) - self._reach), len(text)):
            if text[place] in self._first and any(stop.startswith(text[place:]) for stop in self._stop):
                break
        else:
            place = len(text)
        self._held = text[place:]
        return text[:place], None

    def flush(self) -> str:
        """Return what is held and forget it."""
        held, self._held = self._held, ""
        return held
