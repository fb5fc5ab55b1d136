"""Any number of prompts, answered in order, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from langchain_accel.errors import InvalidRequest, PromptTooLong
from langchain_accel.runtime.batch import Job, submitted

if TYPE_CHECKING:
    from langchain_accel.cli.models import Loaded
    from langchain_accel.runtime.door import Door
    from langchain_accel.runtime.stream import Completion

AHEAD = 4
"""Prompts submitted ahead of the oldest unanswered one, per row: so many that rows stay busy behind a long answer."""

SHOWN = 5
"""Prompts named in an error; of the others it gives the number."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the model gets it.

    Attributes:
        index: its place in the input, from 0.
        text: what was given.
        tokens: its token ids, special tokens included.
        cut: tokens left out at its end, because that was asked for.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    cut: int = 0


def longest(loaded: Loaded, max_input_tokens: int | None) -> int:
    """Return the longest prompt that is taken, in tokens.

    Raises:
        InvalidRequest: `max_input_tokens` is not positive, or more than the window holds.
    """
    window: int = loaded.lease.engine.spec.max_prompt
    if max_input_tokens is None:
        return window
    if not 1 <= max_input_tokens <= window:
        msg = f"max_input_tokens={max_input_tokens}, but this model serves prompts of 1 to {window} tokens: change it, "
        msg += "or raise max_len"
        raise InvalidRequest(msg)
    return max_input_tokens


def tokenized(loaded: Loaded, texts: Iterable[str], cut_to: int | None = None) -> Iterator[Prompt]:
    """Tokenize prompts as they are consumed; `cut_to` keeps the first that many tokens of each, None all of them."""
    for index, text in enumerate(texts):
        tokens = tuple(loaded.lease.checkpoint.encode(text, add_special_tokens=True))
        yield Prompt(index, text, tokens[:cut_to], max(len(tokens) - (cut_to or len(tokens)), 0))


def check(prompts: Iterable[Prompt], limit: int) -> None:
    """Refuse prompts over `limit` tokens before any is run.

    Raises:
        PromptTooLong: names the first few with their lengths, and how many more there are.
        InvalidRequest: a prompt has no token at all.
    """
    over: list[tuple[int, int]] = []
    count = 0
    for prompt in prompts:
        if not prompt.tokens:
            msg = f"prompt {prompt.index} is empty: remove it, the model has nothing to go on from"
            raise InvalidRequest(msg)
        if len(prompt.tokens) > limit:
            count += 1
            if count <= SHOWN:
                over.append((prompt.index, len(prompt.tokens)))
    if over:
        raise _too_long(over, count, limit)


def _too_long(first: list[tuple[int, int]], count: int, limit: int) -> PromptTooLong:
    named = ", ".join(f"prompt {index} has {length} tokens" for index, length in first)
    more = f" and {count - len(first)} more are too long" if count > len(first) else ""
    msg = (
        f"{named}{more}; the limit is {limit}: shorten them, raise --max-input-tokens or --max-len, or let them be "
        f"cut with --max-input-tokens {limit} --truncate"
    )
    return PromptTooLong(msg, prompt_tokens=first[0][1], limit=limit)


def jobs(loaded: Loaded, prompts: Iterable[Prompt]) -> Iterator[Job]:
    """Turn prompts into jobs. A seed is counted up by the prompt's index, or equal prompts would answer alike."""
    for prompt in prompts:
        params = loaded.sampling
        if params.seed is not None:
            params = replace(params, seed=params.seed + prompt.index)
        yield Job(prompt.tokens, params)


def completions(engine: Door, todo: Iterable[Job]) -> Iterator[Completion]:
    """Answer jobs together and yield the answers in order. Jobs are read a bounded number ahead of the answers.

    Closing the generator, an error or an interrupt aborts what still runs. Errors as `Engine.submit` and `Stream`.
    """
    with closing(submitted(engine, todo, AHEAD * engine.stats().rows)) as streams:
        for stream in streams:
            yield stream.result()
