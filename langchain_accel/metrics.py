"""Counters of the engines in this process, for Prometheus. Needs the extra `metrics`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry

from langchain_accel.devices.base import Plan
from langchain_accel.runtime import registry
from langchain_accel.runtime.stats import Stats

_PREFIX = "langchain_accel_"
_ENGINE = ("device", "model", "plan")


class _Family(NamedTuple):
    """One metric: its name, what it is, and which counter of `Stats` each value of its own label shows."""

    name: str
    help: str
    label: str
    fields: dict[str, str]


# Names after https://prometheus.io/docs/practices/naming: base units, counters end with `_total` (the library adds it),
# and a label's values add up to something. Rates and ratios are left to queries.
_GAUGES = (
    _Family("rows", "Rows of the KV cache: requests that can be served at once.", "", {"": "rows"}),
    _Family("requests", "Requests in the engine now.", "state", {"running": "running", "queued": "queued"}),
    _Family("shapes", "Distinct shapes warmed up.", "", {"": "shapes"}),
    _Family(
        "first_token_seconds",
        "Time from submission to first token, over the last 1,024 finished requests.",
        "quantile",
        {"0.5": "first_token_p50", "0.95": "first_token_p95"},
    ),
)
_COUNTERS = (
    _Family(
        "requests_ended",
        "Requests answered to the end, left early by their consumer, or met by an error.",
        "outcome",
        {"finished": "finished", "aborted": "aborted", "failed": "failed"},
    ),
    _Family("prompt_tokens", "Prompt tokens of finished requests.", "", {"": "prompt_tokens"}),
    _Family("reused_prompt_tokens", "Of those, tokens taken from the KV cache.", "", {"": "reused_tokens"}),
    _Family("output_tokens", "Tokens of all answers.", "", {"": "output_tokens"}),
    _Family("dictated_tokens", "Of those, tokens that a grammar dictated.", "", {"": "dictated_tokens"}),
    _Family("drafted_tokens", "Tokens that prompt lookup proposed and a step checked.", "", {"": "drafted_tokens"}),
    _Family("accepted_tokens", "Of those, tokens of answers.", "", {"": "accepted_tokens"}),
    _Family("verify_steps", "Decode steps that checked drafts.", "", {"": "verify_steps"}),
    _Family("steps", "Steps run on the device.", "kind", {"prefill": "prefill_steps", "decode": "decode_steps"}),
    _Family("requested_tokens", "Tokens given to the device that requests asked for.", "", {"": "real_tokens"}),
    _Family("computed_tokens", "Tokens given to the device in all, padding included.", "", {"": "padded_tokens"}),
    _Family(
        "undeclared_shapes", "Shapes refused after warm-up; anything but 0 is a bug.", "", {"": "undeclared_shapes"}
    ),
    _Family("busy_seconds", "Time spent in steps.", "", {"": "busy_seconds"}),
)


class EngineCollector(Collector):
    """Reads the counters of every engine of this process at each scrape; engines come and go, nothing is kept.

    Each sample has the labels `device`, `model` (the folder it was loaded from) and `plan`, a short digest of all that
    was asked for: two plans of one model are told apart by it. A counter begins at 0 again when its engine is loaded
    again. With replicas a sample is the sum of theirs. One process sees its own engines only.
    """

    def collect(self) -> Iterator[Metric]:
        """Yield every metric with a sample for each engine."""
        return _families([(_labels(plan), engine.stats()) for plan, engine in registry.engines()])

    def describe(self) -> Iterator[Metric]:
        """Yield every metric without samples: a registry refuses the same ones twice by their names."""
        return _families([])


def register(to: CollectorRegistry = REGISTRY) -> EngineCollector:
    """Let a Prometheus registry collect the engines of this process.

    Raises:
        ValueError: it does so already.
    """
    collector = EngineCollector()
    to.register(collector)
    return collector


def _families(engines: Sequence[tuple[list[str], Stats]]) -> Iterator[Metric]:
    """Yield every metric with samples of these engines, each given by its labels and counters."""
    kinds: tuple[tuple[type[GaugeMetricFamily | CounterMetricFamily], tuple[_Family, ...]], ...] = (
        (GaugeMetricFamily, _GAUGES),
        (CounterMetricFamily, _COUNTERS),
    )
    for kind, families in kinds:
        for family in families:
            own = [family.label] if family.label else []
            metric = kind(_PREFIX + family.name, family.help, labels=[*_ENGINE, *own])
            for labels, stats in engines:
                for value, field in family.fields.items():
                    metric.add_metric([*labels, *([value] if own else [])], getattr(stats, field))
            yield metric


def _labels(plan: Plan) -> list[str]:
    return [plan.device, plan.model, hashlib.sha256(repr(plan).encode()).hexdigest()[:8]]
