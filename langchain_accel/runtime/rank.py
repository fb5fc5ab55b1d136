"""The body of a rank's process: takes calls from a socket, runs them, and watches for the end of its engine.

It is started by `processes.py`, which hands it one end of a socket pair and shared memory. The interpreter may be a
vendor's own: nothing is imported here that needs more than numpy.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from langchain_accel.devices.base import Logits, Progress, silent
from langchain_accel.runtime.channel import Channel
from langchain_accel.runtime.executor import Executor, told
from langchain_accel.runtime.frames import Frame, Kind
from langchain_accel.runtime.shared_memory import SharedMemory

BEAT_SECONDS = 0.5
"""Time between two heartbeats."""


def main(socket_descriptor: int, memory_descriptor: int) -> None:
    """Serve calls until the engine says close, or is gone. Does not return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the engine's process, which ends its ranks itself
    faulthandler.enable()
    end = socket.socket(fileno=socket_descriptor)
    memory = SharedMemory(memory_descriptor)
    threading.Thread(target=_watch, args=(end, memory), name="accel-heartbeat", daemon=True).start()
    executor = Executor()
    try:
        _serve(Channel(end), executor, memory)
    except (EOFError, OSError):
        _end_group()
    sys.stderr.flush()
    os._exit(0)  # a vendor's threads might keep the interpreter from ending


def _serve(channel: Channel, executor: Executor, memory: SharedMemory) -> None:
    """Answer every call until the last: rank 0 and loads with what was asked for, followers only where they fail."""
    answers = False
    while True:
        frame = channel.receive()
        assert frame is not None, "the socket blocks"
        try:
            if frame.kind is Kind.CLOSE:
                executor.close()
                return
            if frame.kind is Kind.SYNC:
                channel.send(Frame(Kind.DONE, frame.call))
            elif frame.kind is Kind.MEET:
                channel.send(Frame(Kind.DONE, frame.call, text=executor.meet()))
            elif frame.kind is Kind.LOAD:
                order = json.loads(frame.text)
                answers = order["rank"]["index"] == 0
                tell = _teller(channel, frame.call) if answers else silent
                spec = executor.load(order, tell)
                if answers:
                    executor.lend(memory.grow(spec))
                channel.send(Frame(Kind.DONE, frame.call, text=json.dumps(asdict(spec))))
            else:
                logits = executor.run(frame.kind, frame.arrays)
                if answers:
                    channel.send(Frame(Kind.DONE, frame.call, _placed(logits, memory)))
        except Exception as error:  # noqa: BLE001 - the engine must hear of whatever a device raises
            traceback.print_exc()
            sys.stderr.flush()
            channel.send(Frame(Kind.FAILED, frame.call, text=told(error)))


def _placed(logits: Logits | None, memory: SharedMemory) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int64]], ...]:
    """Put logits into shared memory, unless the device computed them there, and return their shape as an array."""
    if logits is None:
        return ()
    place = memory.logits(logits.shape)
    if logits.ctypes.data != place.ctypes.data or not logits.flags.c_contiguous:
        np.copyto(place, logits)
    return (np.array(logits.shape, np.int64),)


def _teller(channel: Channel, call: int) -> Progress:
    def tell(stage: str, done: int, total: int) -> None:
        channel.send(Frame(Kind.PROGRESS, call, (np.array([done, total], np.int64),), stage))

    return tell


def _watch(end: socket.socket, memory: SharedMemory) -> None:
    """Beat, and end this process with everything it started when the engine's process is gone.

    The other end of the socket closes with that process. A process forked from it may hold the end open: so its
    going is noticed by a change of parent as well.
    """
    parent = os.getppid()
    poll = select.poll()
    poll.register(end, getattr(select, "POLLRDHUP", select.POLLHUP))
    gone: Sequence[object] = ()
    while not gone and os.getppid() == parent:
        memory.beat()
        gone = poll.poll(BEAT_SECONDS * 1000)
    _end_group()


def _end_group() -> None:
    """End this process, and the compilers and pools it may have started: it leads a process group of its own."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
