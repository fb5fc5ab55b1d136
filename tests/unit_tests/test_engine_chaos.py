"""Many clients at once, in threads and in an event loop, that come and go as they like: nobody gets a wrong answer."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from langchain_accel.runtime.checkpoint import open_checkpoint
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import SamplingParams
from tests.unit_tests.devices_for_tests import on_reference

pytestmark = pytest.mark.timeout(180)

REQUESTS, THREADS, TASKS, ROUNDS = 200, 32, 32, 2
ROWS, MAX_LEN = 8, 112
GROWTH = 128 * 1024
"""Bytes by which the memory may grow from the end of the first round to the end of the last one."""


@dataclass(frozen=True)
class Job:
    """One request, how its client behaves, and its answer alone."""

    prompt: tuple[int, ...]
    params: SamplingParams
    pause: float
    manner: str
    after: int
    expected: tuple[int, ...]

    def check(self, tokens: tuple[int, ...], *, complete: bool) -> None:
        expected = self.expected if complete else self.expected[: len(tokens)]
        assert tokens == expected, f"{self.manner}: {self.prompt}"


def make_jobs(alone: Callable[[tuple[int, ...], SamplingParams], tuple[int, ...]]) -> list[Job]:
    chance = random.Random(7)
    documents = [tuple(chance.choices(range(5, 320), k=length)) for length in (40, 55, 70)]
    jobs = []
    for number in range(REQUESTS):
        own = tuple(chance.choices(range(5, 320), k=chance.randint(1, 30)))
        prompt = (*chance.choice(documents), *own) if chance.random() < 0.5 else own
        params = SamplingParams(
            max_tokens=chance.randint(1, 12),
            ignore_eos=chance.random() < 0.7,
            temperature=chance.choice([0.0, 0.0, 0.9, 1.5]),
            top_p=chance.choice([1.0, 0.9]),
            seed=number,
        )
        manner = chance.choice(["whole", "whole", "iterate", "iterate", "leave", "drop", "cancel"])
        jobs.append(Job(prompt, params, chance.random() * 0.03, manner, chance.randint(0, 4), alone(prompt, params)))
    return jobs


def in_a_thread(engine: Engine, job: Job) -> None:
    time.sleep(job.pause)
    stream = engine.submit(job.prompt, job.params)
    if job.manner == "whole":
        job.check(stream.result().tokens, complete=True)
        return
    if job.manner == "drop":
        return
    if job.manner == "cancel":
        stream.close()
        return
    tokens: tuple[int, ...] = ()
    for number, delta in enumerate(stream):
        tokens += delta.tokens
        if job.manner == "leave" and number == job.after and delta.finish is None:
            stream.close()
            job.check(tokens, complete=False)
            return
    job.check(tokens, complete=True)


async def in_a_task(engine: Engine, job: Job) -> None:
    await asyncio.sleep(job.pause)
    stream = engine.submit(job.prompt, job.params)
    if job.manner == "whole":
        job.check((await stream.aresult()).tokens, complete=True)
        return
    if job.manner == "drop":
        return
    if job.manner == "cancel":
        task = asyncio.create_task(stream.aresult())
        await asyncio.sleep(job.after / 100)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            job.check(task.result().tokens, complete=True)
        return
    tokens: tuple[int, ...] = ()
    number = 0
    async for delta in stream:
        tokens += delta.tokens
        if job.manner == "leave" and number == job.after and delta.finish is None:
            job.check(tokens, complete=False)
            return
        number += 1
    job.check(tokens, complete=True)


def play(engine: Engine, jobs: list[Job]) -> None:
    """Serve half of the jobs to threads and half to tasks, all of them at once."""
    start, errors = threading.Barrier(THREADS + 1), []

    def work(own: list[Job]) -> None:
        start.wait()
        try:
            for job in own:
                in_a_thread(engine, job)
        except BaseException as error:
            errors.append(error)

    async def serve(own: list[Job]) -> None:
        try:
            for job in own:
                await in_a_task(engine, job)
        except Exception as error:
            errors.append(error)

    async def main() -> None:
        start.wait()
        await asyncio.gather(*[serve(jobs[1::2][number::TASKS]) for number in range(TASKS)])

    threads = [threading.Thread(target=work, args=(jobs[0::2][number::THREADS],)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    asyncio.run(main())
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive(), "a client was left waiting"
    assert errors == []


def settle(engine: Engine) -> None:
    """Wait until the last aborted request has been dropped."""
    quiet = 0
    while quiet < 3:
        quiet = 0 if engine._loop.busy or engine.stats().queued else quiet + 1
        time.sleep(0.002)


@pytest.fixture(scope="module")
def engines(tiny: Path) -> Iterator[tuple[Engine, Engine]]:
    """The engine under test, and one that serves one request at a time and reuses nothing."""
    checkpoint = open_checkpoint(tiny)
    with (
        on_reference(tiny, checkpoint.tokenizer, checkpoint.eos_ids, rows=ROWS, max_len=MAX_LEN) as (engine, _),
        on_reference(
            tiny, checkpoint.tokenizer, checkpoint.eos_ids, rows=1, max_len=MAX_LEN, resumes=False, copies=False
        ) as (alone, _),
    ):
        yield engine, alone


def test_every_answer_in_the_crowd_equals_the_answer_alone(engines: tuple[Engine, Engine]) -> None:
    """Greedy and seeded; what was left early is a beginning of it; no row, no request and no memory is lost.

    Mutants seen to fail: padding at column 0; one random generator for all; `aborted` never looked at; a prefix copied
    one token too far; logits of the wrong lane; a list that keeps every request.
    """
    engine, alone = engines
    jobs = make_jobs(lambda prompt, params: alone.submit(prompt, params).result().tokens)
    assert len({job.expected for job in jobs}) > REQUESTS * 0.8, "answers that differ, or the test shows nothing"

    def traced() -> int:
        settle(engine)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        play(engine, jobs)
        first = traced()
        for _ in range(ROUNDS - 1):
            play(engine, jobs)
        assert traced() - first < GROWTH
    finally:
        tracemalloc.stop()

    stats, rows = engine.stats(), engine._loop._rows
    assert (stats.running, stats.queued, stats.failed, stats.undeclared_shapes) == (0, 0, 0, 0)
    assert stats.finished + stats.aborted == REQUESTS * ROUNDS
    assert stats.aborted > 0
    assert stats.reused_tokens > 0, "some prefixes were shared"
    assert stats.decode_steps < stats.output_tokens, "requests ran side by side"
    assert rows.idle == ROWS
    assert not rows._leased
    # What every row believes to remember is what stands in it.
    for known in [known.tolist() for known in rows._idle.values()]:
        params = SamplingParams(max_tokens=3, ignore_eos=True)
        prompt = [*known[: MAX_LEN - 4], 9]
        resumed = engine.submit(prompt, params).result()
        assert resumed.finish.reused_tokens == len(prompt) - 1
        assert resumed.tokens == alone.submit(prompt, params).result().tokens
