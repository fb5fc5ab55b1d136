"""A whole dataset, answered in one batched run that can be killed and taken up again."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_accel.cli import completion, dataset
from langchain_accel.cli.results import Results
from langchain_accel.runtime.request import SamplingParams

if TYPE_CHECKING:
    from langchain_accel.cli.completion import Prompt
    from langchain_accel.cli.models import Loaded
    from langchain_accel.runtime.stream import Completion

SAMPLED = tuple(field.name for field in fields(SamplingParams) if field.name != "logit_bias")
"""Sampling settings that a description of a run holds as they are."""

Told = Callable[[int, int], None]
"""`told(done, total)`: called after the input was checked, and after every result."""


@dataclass(frozen=True, slots=True)
class Input:
    """What to answer.

    Attributes:
        source: a jsonl, csv or parquet file, or what the package `datasets` reads: a hub id, or a folder.
        column: the column that holds the prompts.
        max_input_tokens: longest prompt in tokens; None: what the model's window holds.
        truncate: keep the first `max_input_tokens` of a longer prompt instead of refusing it.
        split: of what `datasets` reads.
    """

    source: str | Path
    column: str
    max_input_tokens: int | None = None
    truncate: bool = False
    split: str = "train"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a long run did.

    Attributes:
        prompts: records of the input.
        resumed_at: results that were there already.
        cut: prompts that were cut, in this run.
        output_tokens: tokens of the answers, in this run.
    """

    prompts: int
    resumed_at: int
    cut: int
    output_tokens: int


def answer(loaded: Loaded, what: Input, out: Path, told: Told | None = None) -> Outcome:
    """Answer every prompt of a dataset and write the results, in order, to a jsonl file.

    The input is read twice: once to refuse, before anything runs, a record without text or a prompt that is too long;
    once to answer. Neither prompts nor answers gather in memory. Killed at any moment, the same call goes on where it
    was: no result is lost or doubled, and with greedy or seeded sampling the file is the one of an unbroken run.

    Args:
        loaded: the model.
        what: the prompts.
        out: the results, an object per line: `index`, `prompt`, `text`, `finish_reason`, `prompt_tokens`,
            `completion_tokens` and, where a prompt was cut, `cut_tokens`.
        told: how far it is.

    Raises:
        InvalidRequest: the input cannot be used, or `out` holds something else than this run's results.
        PromptTooLong: prompts are longer than the limit, and `truncate` was not asked for.
        AccelError: as `Stream`.
    """
    limit = completion.longest(loaded, what.max_input_tokens)
    digest, total = _survey(loaded, what, limit)
    with Results(out, _asked(loaded, what, digest, total)) as results:
        resumed_at, cut, tokens = results.done, 0, 0
        told = told or _untold
        told(resumed_at, total)
        waiting: deque[Prompt] = deque()  # submitted, not yet answered: as many as the engine is ahead
        prompts = islice(_prompts(loaded, what, limit), resumed_at, None)
        todo = completion.jobs(loaded, _kept(prompts, waiting))
        for done in completion.completions(loaded.lease.engine, todo):
            prompt = waiting.popleft()
            results.append(record(prompt, done))
            cut, tokens = cut + bool(prompt.cut), tokens + done.finish.completion_tokens
            told(results.done, total)
        return Outcome(total, resumed_at, cut, tokens)


def record(prompt: Prompt, done: Completion) -> dict[str, Any]:
    """Return one result as it is written."""
    return {
        "index": prompt.index,
        "prompt": prompt.text,
        "text": done.text,
        "finish_reason": done.finish.reason,
        "prompt_tokens": done.finish.prompt_tokens,
        "completion_tokens": done.finish.completion_tokens,
        **({"cut_tokens": prompt.cut} if prompt.cut else {}),
    }


def _untold(done: int, total: int) -> None:
    """Tell nobody."""


def _prompts(loaded: Loaded, what: Input, limit: int) -> Iterator[Prompt]:
    texts = dataset.column(what.source, what.column, what.split)
    return completion.tokenized(loaded, texts, cut_to=limit if what.truncate else None)


def _kept(prompts: Iterator[Prompt], waiting: deque[Prompt]) -> Iterator[Prompt]:
    for prompt in prompts:
        waiting.append(prompt)
        yield prompt


def _survey(loaded: Loaded, what: Input, limit: int) -> tuple[str, int]:
    """Check every prompt; return a digest of all texts, and how many there are."""
    digest, total = hashlib.sha256(), 0

    def counted() -> Iterator[Prompt]:
        nonlocal total
        for prompt in _prompts(loaded, what, limit):
            text = prompt.text.encode()
            digest.update(len(text).to_bytes(8, "little") + text)
            total += 1
            yield prompt

    completion.check(counted(), limit)
    return digest.hexdigest(), total


def _asked(loaded: Loaded, what: Input, digest: str, total: int) -> dict[str, Any]:
    """Return everything that decides what the results are: not `rows` or `replicas`, answers follow from no batch."""
    model, sampling = loaded.model, loaded.sampling
    return {
        "prompts": total,
        "prompts_sha256": digest,
        "device": model.device,
        "model": str(loaded.lease.checkpoint.folder),
        "model_files": _fingerprint(loaded.lease.checkpoint.folder),
        "dtype": model.dtype,
        "tensor_parallel_size": model.tensor_parallel_size,
        "device_options": repr(getattr(model, "options", None)),
        "max_len": model.max_len,
        "max_input_tokens": what.max_input_tokens,
        "truncate": what.truncate,
        **{name: getattr(sampling, name) for name in SAMPLED},
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()},
    }


def _fingerprint(folder: Path) -> str:
    """Return a digest of the model's files by name, size and time of change: reading the weights would take minutes."""
    files = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    text = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files])
    return hashlib.sha256(text.encode()).hexdigest()
