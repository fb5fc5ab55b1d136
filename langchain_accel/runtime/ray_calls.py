"""Calls from an engine to ranks that are Ray actors: every rank answers, and every failure on the way is understood."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

from langchain_accel.devices.base import IntArray, Logits, Progress
from langchain_accel.errors import AccelError, DeviceLost, StepFailed
from langchain_accel.runtime.dispatcher import SETTLE_SECONDS, refusal
from langchain_accel.runtime.frames import Decoder, Frame, Kind, encode
from langchain_accel.runtime.ray_seats import Seat

_LOOK_SECONDS = 0.2
"""How often the progress of a load is asked for."""

Answer = tuple[Frame, Logits | None]


class RayCalls:
    """Runs one call at a time on the actors of a group."""

    def __init__(
        self, ray: Any, seats: Sequence[Seat], lose: Callable[[int, str], DeviceLost], progress: Progress
    ) -> None:
        """Take over the actors.

        Args:
            ray: the connected module.
            seats: in order of ranks.
            lose: ends all ranks because of what happened to one, and returns the error to raise.
            progress: told how rank 0 loads, in the thread that asks.
        """
        self._ray, self._seats, self._lose, self._progress = ray, seats, lose, progress
        self._call = 0

    def ask(
        self, kind: Kind, texts: Mapping[int, str], seconds: float, arrays: tuple[IntArray, ...] = ()
    ) -> dict[int, Answer]:
        """Send one call to the ranks in `texts`, with a text for each, and return all their answers.

        Raises:
            DeviceLost: a rank died, does not answer in time, or fails where another does not.
            StepFailed: every rank failed.
            AccelError: every rank raised it, or one of them in a load.
        """
        self._call += 1
        what = "load" if kind is Kind.MEET else kind.name.lower()
        pending = {}
        data = b""
        for index, text in texts.items():
            if not data or kind is Kind.LOAD:
                data = encode(Frame(kind, self._call, arrays, text))
            pending[self._seats[index].actor.run.remote(data)] = index
        deadline, late = monotonic() + seconds, f"is alive but has not finished its {what} within {seconds:.0f} seconds"
        answers: dict[int, Answer] = {}
        failures: dict[int, Mapping[str, Any]] = {}
        tell = self._teller() if kind is Kind.LOAD else None
        while pending and (left := deadline - monotonic()) > 0:
            done, _ = self._ray.wait(list(pending), timeout=min(left, _LOOK_SECONDS) if tell else left)
            for reference in done:
                index = pending.pop(reference)
                answers[index] = self._answer(reference, index, what)
                if answers[index][0].kind is Kind.FAILED:
                    failures[index] = json.loads(answers[index][0].text)
                    self._refuse(kind, failures[index])
                    deadline = min(deadline, monotonic() + SETTLE_SECONDS)
            if tell is not None:
                tell()
        if failures:
            raise self._failure(failures, texts, kind, what)
        if pending:
            raise self._lose(min(pending.values()), late)
        return answers

    def _answer(self, reference: Any, index: int, what: str) -> Answer:
        try:
            data, logits = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise self._lose(index, f"{ending(error)} (during {what})") from None
        (frame,) = Decoder().feed(data)
        return frame, logits

    @staticmethod
    def _refuse(kind: Kind, told: Mapping[str, Any]) -> None:
        """Raise what a rank's load refused at once: the others may be waiting for this one."""
        error = refusal(told)
        if kind is Kind.LOAD and error is not None and not isinstance(error, DeviceLost):
            raise error

    def _failure(
        self, failures: Mapping[int, Mapping[str, Any]], asked: Mapping[int, str], kind: Kind, what: str
    ) -> AccelError:
        first = min(failures)
        told = failures[first]
        error = refusal(told)
        text = f"{told['classes'][0]}: {told['message']}"
        if kind in (Kind.LOAD, Kind.MEET) or failures.keys() != asked.keys() or isinstance(error, DeviceLost):
            return self._lose(first, f"failed at its {what}: {text}")
        return error or StepFailed(f"the {what} failed on every rank: {text}")

    def _teller(self) -> Callable[[], None]:
        """Return what passes rank 0's progress on where it has changed since."""
        beat = self._seats[0].actor.beat.options(concurrency_group="signs")
        asked, last = beat.remote(), ("", 0, 0)

        def tell() -> None:
            nonlocal asked, last
            if self._ray.wait([asked], timeout=0)[0]:
                try:
                    news = self._ray.get(asked)
                except self._ray.exceptions.RayError:
                    return  # it is gone; its load says so
                if news != last and news[0]:
                    self._progress(*news)
                asked, last = beat.remote(), news

        return tell


def ending(error: BaseException) -> str:
    """Return what Ray says of an actor that is gone, on one line."""
    text = " ".join(str(error).split())
    _, found, detail = text.partition("Worker exit detail: ")
    return f"died: {detail if found else text}"
