"""What every call has in common: how many run side by side, what one stream carries, and which errors come out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import ContextOverflowError
from langchain_core.runnables.config import RunnableConfig, get_config_list

from langchain_accel.errors import InvalidRequest, PromptTooLong
from langchain_accel.runtime.batch import Job

MOST_THREADS = 256
"""Threads that one batch takes at most."""


class ContextOverflow(PromptTooLong, ContextOverflowError):
    """`PromptTooLong` as LangChain's middleware knows it."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise errors of the runtime as the ones LangChain's middleware looks for."""
    try:
        yield
    except PromptTooLong as error:
        raise ContextOverflow(str(error), prompt_tokens=error.prompt_tokens, limit=error.limit) from error


def side_by_side(config: RunnableConfig | list[RunnableConfig] | None, inputs: int) -> list[RunnableConfig]:
    """Return a configuration per input that lets all of them be submitted at once, where it says nothing else.

    LangChain's own width is the machine's cores and four, which would leave rows idle.
    """
    width = min(max(inputs, 1), MOST_THREADS)
    configs = get_config_list(config, inputs)
    return [one if one.get("max_concurrency") else {**one, "max_concurrency": width} for one in configs]


def single(jobs: list[Job]) -> Job:
    """Return the one job of a stream; several answers (`n`) cannot share one."""
    if len(jobs) > 1:
        msg = f"n={len(jobs)} answers cannot share one stream: use invoke, generate or batch, or set n=1"
        raise InvalidRequest(msg)
    return jobs[0]
