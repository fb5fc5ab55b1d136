"""One rank's process, seen from the engine's: how it is started, how it ended, and what it left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from time import monotonic, sleep

from langchain_accel.devices.base import Placement
from langchain_accel.errors import DeviceUnavailable
from langchain_accel.runtime.channel import Channel
from langchain_accel.runtime.cores import Share
from langchain_accel.runtime.rank_log import RankLog
from langchain_accel.runtime.shared_memory import SharedMemory

# Not `-m`: this package may not be installed for that interpreter, and putting its folder on the path would bring
# along whatever else is in there. Cores first: numpy's threads stay where the thread is that starts them.
_START = """
import importlib.util, json, os, sys
order = json.loads(sys.argv[1])
if order["cores"]:
    os.sched_setaffinity(0, order["cores"])
if order["path"] is not None:
    sys.path[:] = order["path"]
elif sys.path[:1] == [""]:
    del sys.path[0]
package = order["package"]
spec = importlib.util.spec_from_file_location(
    "langchain_accel", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
)
sys.modules["langchain_accel"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from langchain_accel.runtime.rank import main
main(order["socket"], order["memory"])
"""


_NAP_SECONDS = 0.005


class RankProcess:
    """A started rank.

    Attributes:
        index: its rank.
        pid: its process id; also its process group.
        channel: the engine's end of its socket, non-blocking.
        memory: what the two processes share.
        log: what it wrote.
    """

    def __init__(self, index: int, placement: Placement, share: Share) -> None:
        """Start the process. It runs in a session of its own, so that Ctrl-C in a terminal does not reach it.

        Args:
            index: which rank it is.
            placement: interpreter and environment.
            share: processors it may run on.

        Raises:
            DeviceUnavailable: the interpreter cannot be run.
        """
        self.index = index
        ours, theirs = socket.socketpair()
        self.channel, self.memory, self.log = Channel(ours), SharedMemory.create(), RankLog()
        ours.setblocking(False)
        order = {
            "socket": theirs.fileno(),
            "memory": self.memory.descriptor,
            "cores": share.processors,
            "path": None if placement.python else [os.path.abspath(folder) for folder in sys.path],  # noqa: PTH100
            "package": str(Path(__file__).resolve().parents[1]),
        }
        python = placement.python or sys.executable
        try:
            self._process = subprocess.Popen(  # noqa: S603 - an interpreter, which the user may choose
                [python, "-u", "-c", _START, json.dumps(order)],
                pass_fds=(theirs.fileno(), self.memory.descriptor),
                stdin=subprocess.DEVNULL,
                stdout=self.log.fileno(),
                stderr=self.log.fileno(),
                env=environment(placement, share.cores, os.environ),
                start_new_session=True,
            )
        except OSError as error:
            self._close()
            msg = f"the ranks' interpreter {python!r} cannot be started: {error}; set python to one that can"
            raise DeviceUnavailable(msg) from error
        finally:
            theirs.close()
        self.pid = self._process.pid

    def ended(self) -> str | None:
        """Return how the process ended, or None while it runs. It stays a zombie until `end`, so its id is its own."""
        if self._process.returncode is not None:
            return _ending(self._process.returncode)
        try:
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return "ended (another part of this program has taken its exit code)"
        if info is None:
            return None
        return _ending(info.si_status if info.si_code == os.CLD_EXITED else -info.si_status)

    def gone(self, seconds: float) -> bool:
        """Wait until the process has ended; return whether it has."""
        deadline = monotonic() + seconds
        while self.ended() is None:
            if monotonic() >= deadline:
                return False
            sleep(_NAP_SECONDS)
        return True

    def kill(self) -> None:
        """End the process and all that it started, if they still run. Returns at once."""
        if self._process.returncode is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # between fork and setsid, or taken by somebody else
                self._process.kill()

    def end(self, seconds: float) -> None:
        """Take the exit code of a process that was killed or closed, and close everything. Idempotent.

        Args:
            seconds: how long it may take to die; a process that waits for a broken disk may take for ever.
        """
        if self.gone(seconds):
            self._process.wait()
        self._close()

    def disown(self) -> None:
        """In a forked child: let go of what is the parent's, touching nothing of it."""
        self._process.returncode = 0  # so that nobody waits for it here, or warns that nobody did
        self._close()

    def _close(self) -> None:
        self.channel.close()
        self.memory.close()
        self.log.close()


def environment(placement: Placement, cores: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a rank: the engine's, the placement's on top, and a thread for each of its own cores.

    Args:
        placement: another interpreter gets no Python settings of this one; its own variables win.
        cores: cores that the rank is pinned to; 0 for none. A number of threads that the user has set stays.
        inherited: environment of the engine's process.
    """
    dropped = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV") if placement.python else ()
    ours = {name: value for name, value in inherited.items() if name not in dropped}
    threads = {"OMP_NUM_THREADS": str(cores)} if cores else {}
    return {**threads, **ours, **dict(placement.environment)}


def _ending(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    hint = ", which the kernel sends when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by signal {name}{hint}"
