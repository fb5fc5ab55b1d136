"""The counters that Prometheus reads are those of the engines."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="metrics are an extra")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from langchain_accel import metrics
from langchain_accel.runtime import registry
from langchain_accel.runtime.stats import Stats
from tests.reference_models import ReferenceLLM

DERIVED = {"padding_waste", "output_tokens_per_second"}


@pytest.fixture
def llm(tiny: Path) -> Iterator[ReferenceLLM]:
    llm = ReferenceLLM(model=str(tiny), max_len=64, rows=3, max_tokens=5, ignore_eos=True)
    yield llm
    llm.close()


def scrape(collecting: CollectorRegistry) -> dict[tuple[str, str], float]:
    """Return the samples of the one engine, by name and by value of the metric's own label."""
    samples = {}
    for family in text_string_to_metric_families(generate_latest(collecting).decode()):
        for sample in family.samples:
            own = [value for name, value in sample.labels.items() if name not in ("device", "model", "plan")]
            key = (sample.name, "".join(own))
            assert key not in samples, "one engine, one sample"
            samples[key] = sample.value
    return samples


@pytest.fixture
def collecting() -> CollectorRegistry:
    collecting = CollectorRegistry()
    metrics.register(collecting)
    return collecting


def test_samples_are_the_counters(llm: ReferenceLLM, collecting: CollectorRegistry) -> None:
    """Every counter of `Stats` that is no ratio is there once. Mutant seen to fail: aborted shown as failed."""
    llm.batch(["one", "two", "one two three"])
    while llm.stats().aborted == 0:  # an answer may be complete before its stream is left
        next(stream := llm.stream("to be left", max_tokens=50))
        stream.close()
        time.sleep(0.05)
    stats = llm.stats()
    samples = scrape(collecting)
    ended = "langchain_accel_requests_ended_total"
    assert [samples[ended, outcome] for outcome in ("finished", "aborted", "failed")] == [stats.finished, 1, 0]
    for family in (*metrics._GAUGES, *metrics._COUNTERS):
        ending = "_total" if family in metrics._COUNTERS else ""
        for value, field in family.fields.items():
            assert samples.pop((f"langchain_accel_{family.name}{ending}", value)) == getattr(stats, field), field
    assert samples == {}


def test_every_counter_is_shown_or_follows_from_others() -> None:
    shown = [field for family in (*metrics._GAUGES, *metrics._COUNTERS) for field in family.fields.values()]
    assert sorted([*shown, *DERIVED]) == sorted(field.name for field in fields(Stats))


def test_engines_come_and_go_with_their_plans(llm: ReferenceLLM, tiny: Path, collecting: CollectorRegistry) -> None:
    """Mutant seen to fail: engines told apart by their model alone."""
    assert b'rows{device="reference"' not in generate_latest(collecting)
    other = ReferenceLLM(model=str(tiny), max_len=48)
    llm.load()
    other.load()
    rows = re.findall(r"^langchain_accel_rows\{(.*)\} (.*)$", generate_latest(collecting).decode(), re.MULTILINE)
    assert len({labels for labels, _ in rows}) == 2
    assert sorted(value for _, value in rows) == ["3.0", "8.0"]
    assert all(f'model="{tiny.resolve()}"' in labels for labels, _ in rows)
    other.close()
    assert generate_latest(collecting).decode().count("langchain_accel_rows{") == 1
    assert [plan for plan, _ in registry.engines()] == [replace(llm._plan(None), model=str(tiny.resolve()))]


def test_two_registrations_are_refused(collecting: CollectorRegistry) -> None:
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.register(collecting)
