"""Many prompts at once, answered in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from langchain_accel.errors import QueueFull
from langchain_accel.runtime.door import Door
from langchain_accel.runtime.engine import NO_TOKENS

if TYPE_CHECKING:
    from langchain_accel.runtime.constraints import Grammar
    from langchain_accel.runtime.request import SamplingParams
    from langchain_accel.runtime.stream import Completion, Stream


class Job(NamedTuple):
    """The arguments of one `Engine.submit`."""

    prompt: Sequence[int]
    params: SamplingParams
    grammar: Grammar | None = None
    visible: Mapping[int, str] = NO_TOKENS


def complete(engine: Door, jobs: Iterable[Job]) -> list[Completion]:
    """Answer prompts together; an interrupt or error aborts all of them. Errors as `Engine.submit` and `Stream`."""
    with closing(submitted(engine, jobs)) as streams:
        return [stream.result() for stream in streams]


async def acomplete(engine: Door, jobs: Iterable[Job]) -> list[Completion]:
    """As `complete`, in an event loop; cancelling the task aborts every prompt."""
    with closing(submitted(engine, jobs)) as streams:
        return [await stream.aresult() for stream in streams]


def submitted(engine: Door, jobs: Iterable[Job], ahead: int | None = None) -> Generator[Stream, None, None]:
    """Submit jobs and yield their streams in order; closing the generator aborts what was submitted.

    Args:
        engine: who answers.
        jobs: taken one by one.
        ahead: most submitted at once, at least 1; None for as many as the queue takes. A batch longer than that waits
            for its own answers.
    """
    flying: deque[Stream] = deque()
    try:
        for job in jobs:
            if len(flying) == ahead:
                yield flying.popleft()
            while True:
                try:
                    flying.append(engine.submit(*job))
                    break
                except QueueFull:
                    if not flying:
                        raise
                    yield flying.popleft()
        while flying:
            yield flying.popleft()
    finally:
        for stream in flying:
            stream.close()
