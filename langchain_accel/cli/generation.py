"""A few prompts, answered together, and the time that took."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from langchain_accel.cli import completion
from langchain_accel.errors import InvalidRequest
from langchain_accel.runtime.stream import fold

if TYPE_CHECKING:
    from langchain_accel.cli.completion import Prompt
    from langchain_accel.cli.models import Loaded
    from langchain_accel.runtime.stream import Completion


def lines(file: Path) -> list[str]:
    """Return the prompts of a text file: one per line, empty lines left out.

    Raises:
        InvalidRequest: the file cannot be read as UTF-8 text.
    """
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{file} cannot be read: {error}"
        raise InvalidRequest(msg) from error


def prepared(
    loaded: Loaded, texts: Sequence[str], max_input_tokens: int | None = None, *, truncate: bool = False
) -> list[Prompt]:
    """Tokenize prompts and refuse those that are too long, or cut them where `truncate` asks for it.

    Raises:
        PromptTooLong: names prompts, lengths and limit.
        InvalidRequest: a prompt is empty, or the limit is beyond the window.
    """
    limit = completion.longest(loaded, max_input_tokens)
    prompts = list(completion.tokenized(loaded, texts, cut_to=limit if truncate else None))
    completion.check(prompts, limit)
    return prompts


def answers(loaded: Loaded, prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
    """Answer prompts together and yield each with its answer, in order."""
    done = completion.completions(loaded.lease.engine, completion.jobs(loaded, prompts))
    yield from zip(prompts, done, strict=True)


def streamed(loaded: Loaded, prompt: Prompt, show: Callable[[str], None]) -> Completion:
    """Answer one prompt, showing its text as it is made."""
    [job] = completion.jobs(loaded, [prompt])
    deltas = []
    with closing(loaded.lease.engine.submit(*job)) as stream:
        for delta in stream:
            show(delta.text)
            deltas.append(delta)
    return fold(deltas)


class Timing:
    """Time and tokens of one model's work, seen from its caller. Starts when it is made."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._began = perf_counter()
        self._laps: list[tuple[float, int]] = []

    def lap(self, tokens: int) -> None:
        """Note that so many answer tokens were made since the last lap."""
        now = perf_counter()
        self._laps.append((now - self._began, tokens))
        self._began = now

    def report(self) -> dict[str, Any]:
        """Return the figures; times are in seconds.

        `first_token_p50` and `p95` run from a prompt's submission to its first token, the wait for a row included.
        `rows` are those of all replicas. `tokens_per_second` is of all answers together; where there were several
        laps, it is given for each.
        """
        stats = self._loaded.lease.engine.stats()
        seconds, tokens = sum(lap for lap, _ in self._laps), sum(count for _, count in self._laps)
        report: dict[str, Any] = {
            "load_seconds": self._loaded.load_seconds,
            "warm_up_seconds": self._loaded.warm_up_seconds,
            "first_token_p50_seconds": stats.first_token_p50,
            "first_token_p95_seconds": stats.first_token_p95,
            "generate_seconds": seconds,
            "output_tokens": tokens,
            "rows": stats.rows,
            "reused_prompt_tokens": stats.reused_tokens,
            "tokens_per_second": tokens / max(seconds, 1e-9),
        }
        if len(self._laps) > 1:
            report["iterations_tokens_per_second"] = [count / max(lap, 1e-9) for lap, count in self._laps]
        return report
