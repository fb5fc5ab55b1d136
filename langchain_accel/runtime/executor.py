"""What a rank does with the calls it is sent, however they travel: it runs them on its own part of the device."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from importlib import import_module
from typing import Any

import numpy as np

from langchain_accel.devices.base import Device, IntArray, Logits, Plan, Progress, Rank, Spec
from langchain_accel.errors import PlanRejected
from langchain_accel.runtime.frames import Kind

_MOST_TEXT = 2**15
"""Characters of an error's message that are sent; its beginning and end say what happened."""


class Executor:
    """One rank's device. Load it first; one thread makes all calls."""

    def __init__(self) -> None:
        self._device: Device | None = None
        self._meeting: socket.socket | None = None

    @property
    def device(self) -> Device:
        """The loaded device."""
        assert self._device is not None, "loaded before the first call"
        return self._device

    def meet(self, host: str = "127.0.0.1") -> str:
        """Choose a free port where this rank will open the rendezvous, and return `host:port`.

        Args:
            host: address of this machine that all ranks can reach: the loopback one, where they are all on it.

        The port stays reserved until the load is over: a socket that is bound but does not listen keeps others from
        getting it, and lets this process listen on it with `SO_REUSEADDR`, as torch's store does.
        """
        self._meeting = socket.socket()
        self._meeting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._meeting.bind((host, 0))
        return f"{host}:{self._meeting.getsockname()[1]}"

    def load(self, order: Mapping[str, Any], progress: Progress) -> Spec:
        """Load this rank's part, as `order` says, and return what the device serves."""
        device = import_module(order["module"])
        plan, rank = _plan(order["plan"]), Rank(**order["rank"])
        options = device.Options(**{name: _frozen(value) for name, value in order["options"].items()})
        self._device = device.load(replace(plan, options=options), options, rank, progress)
        if self._meeting is not None:
            self._meeting.close()
        return self.device.spec

    def lend(self, room: Logits) -> None:
        """Offer room where the device may compute its logits, so that they need not be copied there."""
        into: Callable[[Logits], None] | None = getattr(self.device, "logits_into", None)
        if into is not None:
            into(room)

    def run(self, kind: Kind, arrays: tuple[IntArray, ...]) -> Logits | None:
        """Run one call on the device; return its logits where it has any.

        Raises:
            Exception: whatever the device raises.
            TypeError: its logits are no float32 array.
        """
        device = self.device
        if kind is Kind.COPY:
            device.copy_row(*arrays[0].tolist())
            return None
        if kind is Kind.FORGET:
            device.forget(*arrays[0].tolist())
            return None
        steps: dict[Kind, Callable[..., Logits]] = {
            Kind.PREFILL: device.prefill,
            Kind.DECODE: device.decode,
            Kind.VERIFY: device.verify,
        }
        logits = steps[kind](*arrays)
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32:
            msg = f"{kind.name.lower()} must return a float32 array, got {getattr(logits, 'dtype', type(logits))}"
            raise TypeError(msg)
        return logits

    def close(self) -> None:
        """Close the device, if it was loaded. Idempotent."""
        if self._device is not None:
            self._device.close()


def order(module: str, plan: Plan, rank: Rank) -> dict[str, Any]:
    """Return what `Executor.load` needs, ready for JSON.

    Raises:
        PlanRejected: an option cannot be written as JSON.
    """
    named = {field.name: getattr(plan, field.name) for field in fields(plan) if field.name != "options"}
    options = {field.name: getattr(plan.options, field.name) for field in fields(plan.options)}
    for name, value in options.items():
        if not _plain(value):
            msg = f"the option {name}={value!r} cannot be sent to another process: it takes numbers, texts and tuples"
            raise PlanRejected(msg)
    return {"module": module, "plan": named, "options": options, "rank": asdict(rank)}


def told(error: Exception) -> str:
    """Return what the engine is told of an error: its classes, the nearest first, and its message, cut to be sent."""
    message = str(error)
    if len(message) > _MOST_TEXT:
        message = f"{message[: _MOST_TEXT // 2]} ... {message[-_MOST_TEXT // 2 :]}"
    return json.dumps({"classes": [each.__name__ for each in type(error).__mro__], "message": message})


def spec_of(named: Mapping[str, Any]) -> Spec:
    """Return the spec whose fields came as JSON."""
    return Spec(**{name: _frozen(value) for name, value in named.items()})


def _plan(named: Mapping[str, Any]) -> Plan:
    return Plan(**{name: _frozen(value) for name, value in named.items()})


def _frozen(value: Any) -> Any:
    """Return JSON's lists as the tuples they were."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
