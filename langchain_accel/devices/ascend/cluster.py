"""Ranks as `msrun` would start them: a scheduler where they meet, and variables that tell each who it is."""

from __future__ import annotations

import os
import subprocess
import sys

from langchain_accel.devices.base import Rank

MEETING_SECONDS = 600
"""How long a rank may wait in a sum for the others, which may be compiling still. One that ends is noticed at once."""

_SCHEDULE = "from mindspore.communication import init; init()"


def join(rank: Rank) -> None:
    """Tell MindSpore, which is not imported yet, about the other ranks; rank 0 starts their scheduler.

    The scheduler ends when its ranks do; if rank 0 is killed, it goes with its process group.

    Args:
        rank: this process; `rank.address` is where the scheduler listens, on the loopback interface for ranks of one
            machine.
    """
    if rank.size == 1:
        return
    host, port = rank.address.rsplit(":", 1)
    ours = {
        "MS_WORKER_NUM": str(rank.size),
        "MS_SCHED_HOST": host,
        "MS_SCHED_PORT": port,
        "MS_NODE_TIMEOUT": str(MEETING_SECONDS),  # also of sums between CPUs, which fail after 30 seconds without it
    }
    if rank.index == 0:
        subprocess.Popen(  # noqa: S603  this interpreter, with a program of our own
            [sys.executable, "-c", _SCHEDULE],
            env={**os.environ, **ours, "MS_ROLE": "MS_SCHED"},
            stdin=subprocess.DEVNULL,
        )
    os.environ |= {**ours, "MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank.index)}
