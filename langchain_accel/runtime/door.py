"""What those who ask see of an engine, be it one or several behind one door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from langchain_accel.devices.base import Spec
from langchain_accel.errors import DeviceLost
from langchain_accel.runtime.constraints import Grammar
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.stats import Stats
from langchain_accel.runtime.stream import Stream


class Door(Protocol):
    """An `Engine`, or the `Replicas` of one. Every method may be called from any thread."""

    @property
    def spec(self) -> Spec:
        """What serves; of several engines, what each of them serves."""
        ...

    @property
    def closed(self) -> bool:
        """Whether requests are refused."""
        ...

    @property
    def lost(self) -> DeviceLost | None:
        """Why nothing serves any more, once nothing does."""
        ...

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams = ...,
        grammar: Grammar | None = None,
        visible: Mapping[int, str] = ...,
    ) -> Stream:
        """Queue a prompt and return its answer's stream; see `Engine.submit`."""
        ...

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        ...

    def close(self, *, wait: bool = True) -> None:
        """Fail what still runs and release the device; see `Engine.close`."""
        ...
