"""Counters of one engine, and the snapshot that `Engine.stats()` returns. Nothing here is global."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from statistics import quantiles
from typing import TYPE_CHECKING

from langchain_accel.runtime.request import Finish

if TYPE_CHECKING:
    from langchain_accel.runtime.runner import Runner


@dataclass(frozen=True, slots=True)
class Stats:
    """What an engine has done since it was ready, and what it is doing now. Times are in seconds.

    Attributes:
        rows: rows of the KV arena.
        running: requests that own a row now.
        queued: requests waiting for a row now.
        finished: requests answered to the end.
        aborted: requests left early by their consumer.
        failed: requests that met an error.
        prompt_tokens: prompt tokens of finished requests.
        reused_tokens: of those, tokens taken from the KV cache instead of being computed.
        output_tokens: tokens of all answers so far.
        dictated_tokens: of those, tokens that a grammar dictated, which took no decode step of their own.
        drafted_tokens: tokens that were proposed by prompt lookup and checked.
        accepted_tokens: of those, tokens of answers: each of them saved a decode step of its request.
        prefill_steps: prefill steps run.
        decode_steps: decode steps run, those that check drafts included.
        verify_steps: of those, steps that check drafts.
        real_tokens: tokens given to the device that requests asked for.
        padded_tokens: tokens given to the device in all, padding included.
        padding_waste: `padded_tokens / real_tokens`; 1 is no padding.
        shapes: distinct shapes warmed up.
        undeclared_shapes: shapes refused after warm-up; anything but 0 is a bug.
        busy_seconds: time spent in steps.
        output_tokens_per_second: `output_tokens` per second of `busy_seconds`.
        first_token_p50: median time from submission to first token, over the last 1,024 finished requests.
        first_token_p95: 95th percentile of the same.
    """

    rows: int
    running: int
    queued: int
    finished: int
    aborted: int
    failed: int
    prompt_tokens: int
    reused_tokens: int
    output_tokens: int
    dictated_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    prefill_steps: int
    decode_steps: int
    verify_steps: int
    real_tokens: int
    padded_tokens: int
    padding_waste: float
    shapes: int
    undeclared_shapes: int
    busy_seconds: float
    output_tokens_per_second: float
    first_token_p50: float
    first_token_p95: float


@dataclass(slots=True)
class Meter:
    """Running counters, changed by the engine's thread only."""

    finished: int = 0
    aborted: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    output_tokens: int = 0
    dictated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    busy_seconds: float = 0.0
    first_token_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1024))

    def finish(self, finish: Finish) -> None:
        """Count one answered request."""
        self.finished += 1
        self.prompt_tokens += finish.prompt_tokens
        self.reused_tokens += finish.reused_tokens
        self.first_token_seconds.append(finish.first_token_seconds)

    def first_token_percentiles(self) -> tuple[float, float]:
        """Return median and 95th percentile of the time to the first token, in seconds; zeros before any."""
        return percentiles(list(self.first_token_seconds))


def snapshot(meter: Meter, runner: Runner, *, running: int, queued: int) -> Stats:
    """Return the counters of one engine as they are now."""
    work = runner.work
    p50, p95 = meter.first_token_percentiles()
    return Stats(
        rows=runner.spec.rows,
        running=running,
        queued=queued,
        finished=meter.finished,
        aborted=meter.aborted,
        failed=meter.failed,
        prompt_tokens=meter.prompt_tokens,
        reused_tokens=meter.reused_tokens,
        output_tokens=meter.output_tokens,
        dictated_tokens=meter.dictated_tokens,
        drafted_tokens=meter.drafted_tokens,
        accepted_tokens=meter.accepted_tokens,
        prefill_steps=work.prefills,
        decode_steps=work.decodes + work.verifies,
        verify_steps=work.verifies,
        real_tokens=work.real_tokens,
        padded_tokens=work.padded_tokens,
        padding_waste=work.padded_tokens / max(work.real_tokens, 1),
        shapes=runner.shapes,
        undeclared_shapes=runner.undeclared,
        busy_seconds=meter.busy_seconds,
        output_tokens_per_second=meter.output_tokens / max(meter.busy_seconds, 1e-9),
        first_token_p50=p50,
        first_token_p95=p95,
    )


def percentiles(times: Sequence[float]) -> tuple[float, float]:
    """Return median and 95th percentile; zeros where there are no times."""
    if len(times) < 2:  # noqa: PLR2004
        return (times[0], times[0]) if times else (0.0, 0.0)
    cuts = quantiles(times, n=20, method="inclusive")
    return cuts[9], cuts[18]


def summed(each: Sequence[Stats], first_token_seconds: Sequence[float]) -> Stats:
    """Return the counters of several engines of one plan as if they were one's.

    Args:
        each: their snapshots, at least one.
        first_token_seconds: of all of them, for the percentiles.

    Returns:
        Sums, apart from `shapes`, of which each engine has the same, and the ratios, which are taken anew. Engines are
        busy side by side: `output_tokens_per_second` is the sum of theirs.
    """
    totals = {field.name: sum(getattr(stats, field.name) for stats in each) for field in fields(Stats)}
    totals["shapes"] = max(stats.shapes for stats in each)
    totals["padding_waste"] = totals["padded_tokens"] / max(totals["real_tokens"], 1)
    totals["first_token_p50"], totals["first_token_p95"] = percentiles(first_token_seconds)
    return Stats(**totals)
