"""Calls from an engine to its ranks: sent to all, answered by some, and every failure on the way understood."""

from __future__ import annotations

import json
import select
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any

from langchain_accel import errors
from langchain_accel.devices.base import IntArray, Progress
from langchain_accel.errors import AccelError, DeviceLost, StepFailed
from langchain_accel.runtime.frames import BadFrame, Frame, Kind, encode
from langchain_accel.runtime.processes import RankProcess

SETTLE_SECONDS = 2.0
"""After a rank failed: how long the others may take to fail as well, or to show that they did not."""

_EXIT_SECONDS = 1.0
"""How long the exit of a process may follow the end of its socket."""


class Dispatcher:
    """Runs one call at a time on a list of ranks."""

    def __init__(
        self, ranks: Sequence[RankProcess], lose: Callable[[RankProcess, str], DeviceLost], progress: Progress
    ) -> None:
        """Take over the ranks' channels.

        Args:
            ranks: in order of their index.
            lose: ends all ranks because of what happened to one, and returns the error to raise.
            progress: told how rank 0 loads.
        """
        self._ranks, self._lose, self._progress = ranks, lose, progress
        self._call = 0

    def ask(
        self, kind: Kind, asked: Mapping[int, str], seconds: float, arrays: tuple[IntArray, ...] = ()
    ) -> dict[int, Frame]:
        """Send one call to all ranks and return the answers of those that answer.

        Args:
            kind: the call. A load is answered by every rank it is sent to, any other one by rank 0.
            asked: the text for each rank; a rank that is not in it is not sent the call.
            seconds: how long the call may take.
            arrays: the same for each rank.

        Raises:
            DeviceLost: a rank died, does not answer in time, or fails where another does not.
            StepFailed: every rank failed.
            AccelError: every rank raised it, or one of them in a load.
        """
        self._call += 1
        deadline = monotonic() + seconds
        what = "load" if kind is Kind.MEET else kind.name.lower()
        ranks = [self._ranks[index] for index in asked]
        data = b""
        for rank in ranks:
            if not data or kind is Kind.LOAD:
                data = encode(Frame(kind, self._call, arrays, asked[rank.index]))
            self._send(rank, data, deadline, what)
        wanted = set(asked) if kind is Kind.LOAD else {0}
        answers: dict[int, Frame] = {}
        for rank, frame in self._frames(deadline, what):
            if frame.kind is Kind.PROGRESS:
                self._progress(frame.text, *frame.arrays[0].tolist())
            elif frame.kind is Kind.FAILED:
                raise self._failure(rank, frame, what)
            elif frame.call == self._call:  # else it answers the SYNC of an earlier one
                answers[rank.index] = frame
                if wanted <= answers.keys():
                    return answers
        late = self._ranks[min(wanted - answers.keys())]
        raise self._lose(late, f"is alive but has not finished its {what} within the limit of {seconds:.0f} seconds")

    def _send(self, rank: RankProcess, data: bytes, deadline: float, what: str) -> None:
        try:
            rank.channel.send(data, max(0.0, deadline - monotonic()))
        except TimeoutError:
            raise self._lose(rank, f"is alive but has not taken its {what} in time") from None
        except OSError:
            raise self._lose(rank, _ending(rank, what)) from None

    def _frames(self, deadline: float, what: str) -> Iterator[tuple[RankProcess, Frame]]:
        """Yield the frames of all ranks as they come, until the deadline; raise when a rank is gone."""
        ranks = {rank.channel.fileno(): rank for rank in self._ranks}
        poll = select.poll()
        for descriptor in ranks:
            poll.register(descriptor, select.POLLIN)
        ready: Iterable[RankProcess] = [rank for rank in self._ranks if rank.channel.pending]
        while True:
            for rank in ready:
                while frame := self._receive(rank, what):
                    yield rank, frame
            seen = poll.poll(max(0.0, deadline - monotonic()) * 1000)
            if not seen:
                return
            ready = [ranks[descriptor] for descriptor, _ in seen]

    def _receive(self, rank: RankProcess, what: str) -> Frame | None:
        try:
            return rank.channel.receive()
        except EOFError:
            raise self._lose(rank, _ending(rank, what)) from None
        except BadFrame as error:
            raise self._lose(rank, f"sent what cannot be read ({error})") from None

    def _failure(self, rank: RankProcess, frame: Frame, what: str) -> AccelError:
        """Return the error of a failed call: the call's own where every rank fails at it, else that of a lost device.

        A load that a device refuses is refused, whatever the other ranks do: they may be waiting for this one.
        """
        told = json.loads(frame.text)
        error = refusal(told)
        if what == "load" and error is not None:
            return error
        agreed = frame.call == self._call and self._all_failed(rank, what)
        if what == "load" or not agreed or isinstance(error, DeviceLost):
            return self._lose(rank, f"failed at its {what}: {told['classes'][0]}: {told['message']}")
        return error or StepFailed(f"the {what} failed on every rank: {told['classes'][0]}: {told['message']}")

    def _all_failed(self, first: RankProcess, what: str) -> bool:
        """Whether the other ranks fail at this call, too; raises where one turns out to have died."""
        others = [rank for rank in self._ranks if rank is not first]
        deadline = monotonic() + SETTLE_SECONDS
        sync = encode(Frame(Kind.SYNC, self._call))
        for rank in others:
            self._send(rank, sync, deadline, what)
        for rank, frame in self._frames(deadline, what) if others else ():
            if frame.call == self._call and rank in others:
                if frame.kind is not Kind.FAILED:
                    return False
                others.remove(rank)
            if not others:
                break
        return not others


def refusal(told: Mapping[str, Any]) -> AccelError | None:
    """Return a rank's error as the class it was, where it is one of this package's; else None.

    Args:
        told: its `message`, and the names of its `classes`, the nearest first.
    """
    for name in told["classes"]:
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, AccelError):
            error: AccelError = kind.__new__(kind, told["message"])  # not `__init__`, which may want more
            return error
    return None


def _ending(rank: RankProcess, what: str) -> str:
    """Say how a rank ended whose socket is closed."""
    rank.gone(_EXIT_SECONDS)
    return f"{rank.ended() or 'closed its socket'} (during {what})"
