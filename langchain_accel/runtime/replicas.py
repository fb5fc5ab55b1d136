"""Several engines of one plan behind one door: each request goes to one of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import count

import numpy as np

from langchain_accel.devices.base import Spec
from langchain_accel.errors import AccelError, DeviceLost, EngineClosed, QueueFull
from langchain_accel.runtime.constraints import Grammar
from langchain_accel.runtime.engine import GREEDY, NO_TOKENS, Engine
from langchain_accel.runtime.loop import explain
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.routing import Candidate, Prompts, choose
from langchain_accel.runtime.stats import Stats, summed
from langchain_accel.runtime.stream import Stream


class _Replica:
    """One engine, and what the door knows about it. The door's lock guards it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.prompts = Prompts(engine.spec.rows)
        self.entering = 0  # requests that are on their way in, and not yet part of the engine's load
        self.last = 0
        self.reloading: threading.Thread | None = None


class Replicas:
    """Engines of one plan. One that loses its device fails its own requests, and is loaded again beside the others."""

    def __init__(self, load: Callable[[int], Engine], size: int, lost: Callable[[int, Engine], None]) -> None:
        """Load every replica; one after the other, so that each finds the memory that is really left.

        Args:
            load: returns the engine of a replica, given its index; called again after a loss.
            size: number of replicas.
            lost: told of every engine that is about to be loaded again.

        Raises:
            AccelError: whatever `load` raised; replicas that were loaded before are closed.
        """
        self._load, self._lost, self._process = load, lost, os.getpid()
        self._lock = threading.RLock()  # a finaliser may close it while the same thread holds it
        self._turns = count(1)
        self._closing = False
        self._replicas: list[_Replica] = []
        try:
            for index in range(size):
                self._replicas.append(_Replica(load(index)))
        except BaseException:
            self.close()
            raise

    @property
    def spec(self) -> Spec:
        """What each replica serves."""
        return self._replicas[0].engine.spec

    @property
    def closed(self) -> bool:
        """Whether requests are refused: closed, every device lost, or forked from another process."""
        return self._closing or all(replica.engine.closed for replica in self._replicas)

    @property
    def lost(self) -> DeviceLost | None:
        """Why the last device is gone, once all are."""
        losses = [replica.engine.lost for replica in self._replicas]
        return losses[0] if None not in losses else None

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams = GREEDY,
        grammar: Grammar | None = None,
        visible: Mapping[int, str] = NO_TOKENS,
    ) -> Stream:
        """Queue a prompt at the replica that suits it best; see `Engine.submit`.

        Raises:
            QueueFull: every replica's queue is full.
            AccelError: as `Engine.submit`.
        """
        if os.getpid() != self._process:
            msg = "these engines belong to the process this one was forked from: load the model after the fork"
            raise EngineClosed(msg)
        refusal: AccelError = EngineClosed("the engine is closed: use the model object again to load it again")
        full: list[_Replica] = []
        while (replica := self._enter(prompt, full)) is not None:
            try:
                return replica.engine.submit(prompt, params, grammar, visible)
            except (QueueFull, DeviceLost, EngineClosed) as error:  # noqa: PERF203 - another one may take it
                refusal = error
                full.append(replica)
            finally:
                with self._lock:
                    replica.entering -= 1
        if not full and not self._closing and (lost := self.lost) is not None:
            raise explain(lost)
        raise refusal

    def stats(self) -> Stats:
        """Return the sum of the replicas' counters; those of a replica that was loaded again began anew."""
        engines = self.engines
        times = [seconds for engine in engines for seconds in list(engine.meter.first_token_seconds)]
        return summed([engine.stats() for engine in engines], times)

    @property
    def engines(self) -> list[Engine]:
        """Every replica's engine."""
        return [replica.engine for replica in self._replicas]

    def close(self, *, wait: bool = True) -> None:
        """Close every replica. Idempotent; `wait` as `Engine.close`."""
        if os.getpid() != self._process:
            return
        self._closing = True
        for replica in self._replicas:
            replica.engine.close(wait=False)  # side by side
        if not wait:
            return
        for replica in self._replicas:
            if (reloading := replica.reloading) is not None and reloading is not threading.current_thread():
                reloading.join()
            replica.engine.close()

    def _enter(self, prompt: Sequence[int], without: Sequence[_Replica]) -> _Replica | None:
        """Choose a replica and count the request as its own; None where none is left that serves."""
        with self._lock:
            self._mend()
            there = [each for each in self._replicas if not each.engine.closed and each not in without]
            if not there:
                return None
            tokens = np.array(prompt, np.int64)
            chosen = there[
                choose(
                    [
                        Candidate(each.engine.load + each.entering, each.prompts.shared(tokens), each.last)
                        for each in there
                    ],
                    self.spec.rows,
                )
            ]
            chosen.entering += 1
            chosen.last = next(self._turns)
            chosen.prompts.add(tokens)
            return chosen

    def _mend(self) -> None:
        """Load lost replicas again, in threads of their own; where all are lost, whoever holds this door does."""
        if self._closing or all(replica.engine.closed for replica in self._replicas):
            return
        for index, replica in enumerate(self._replicas):
            if replica.engine.lost is not None and replica.reloading is None:
                replica.reloading = threading.Thread(
                    target=self._reload, args=(index, replica), name="accel-reload", daemon=True
                )
                replica.reloading.start()

    def _reload(self, index: int, replica: _Replica) -> None:
        replica.engine.close()
        self._lost(index, replica.engine)
        try:
            engine = self._load(index)
        except AccelError:  # `load` counts losses; a later request tries again
            with self._lock:
                replica.reloading = None
            return
        with self._lock:
            replica.engine, replica.prompts, replica.reloading = engine, Prompts(engine.spec.rows), None
            if self._closing:
                engine.close(wait=False)
