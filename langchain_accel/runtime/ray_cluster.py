"""The Ray cluster that this process uses: one it is told of, or one of its own on this machine."""

from __future__ import annotations

import os
import threading
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from langchain_accel.errors import DeviceUnavailable

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers run in this interpreter, whatever started this program
}
_OWN_SETTINGS = {
    # Despite its name it decides, on Linux too, whether "127.0.0.1" is replaced by an address of the network card. With
    # 0 all that Ray starts listens on the loopback interface only. Ray reads it when it is imported.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
_lock = threading.Lock()


def connect() -> ModuleType:
    """Return the module `ray`, connected.

    A program that has called `ray.init` stays connected as it is. Else the cluster that the variable RAY_ADDRESS names
    is joined, or one is started on this machine, which ends with this process.

    Raises:
        DeviceUnavailable: Ray is not installed, or does not start or connect.
    """
    if find_spec("ray") is None:
        msg = "placement='ray' needs Ray, which is not installed: pip install \"langchain-accel[ray]\""
        raise DeviceUnavailable(msg)
    address = os.environ.get("RAY_ADDRESS") or "local"
    with _lock:
        for name, value in {**_SETTINGS, **(_OWN_SETTINGS if address == "local" else {})}.items():
            os.environ.setdefault(name, value)
        import ray

        if not ray.is_initialized():
            _start(ray, address)
    module: ModuleType = ray
    return module


def _start(ray: Any, address: str) -> None:
    """Call `ray.init` on a thread that never ends.

    The processes that Ray starts ask the kernel to end them with their parent (`PR_SET_PDEATHSIG`), which for the
    kernel is the thread that started them: those of a thread pool's thread would be gone when it is.
    """
    failure: list[BaseException] = []
    done = threading.Event()

    def start() -> None:
        try:
            own = {"include_dashboard": False} if address == "local" else {}
            ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            failure.append(error)
        done.set()
        if not failure:
            threading.Event().wait()

    threading.Thread(target=start, name="accel-ray", daemon=True).start()
    done.wait()
    if failure:
        what = "start on this machine" if address == "local" else f"connect to RAY_ADDRESS={address}"
        msg = f"Ray does not {what}: {type(failure[0]).__name__}: {failure[0]}"
        raise DeviceUnavailable(msg) from failure[0]


def _forget_parents_owner() -> None:
    global _lock  # noqa: PLW0603 - a thread of the parent may have held it
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_parents_owner)
