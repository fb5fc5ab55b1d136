"""MindSpore, mindformers and the Ascend device that are really there."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from langchain_accel.devices.base import Rank
from langchain_accel.errors import DeviceUnavailable

INSTALL = (
    'in a virtual environment of its own on Python 3.10 or 3.11, pip install "langchain-accel[ascend]", and give its '
    'interpreter as AscendOptions(python="path/to/bin/python") (see docs/ascend.md)'
)
_MODULES = ("mindspore", "mindformers")


def require(target: str, device_id: int, memory: str | None = None) -> None:
    """Import the stack and take the device.

    Args:
        target: `"ascend"`, or `"cpu"` for MindSpore's CPU backend.
        device_id: which NPU of the machine.
        memory: what MindSpore may take of it, such as `"58GB"`; None for its own default.

    Raises:
        DeviceUnavailable: a package is missing or broken, or CANN, its driver or the NPU is.
    """
    _prepare()
    if sys.argv[:1] == ["-c"]:  # MindSpore's compile cache reads the program that was started, which a rank has not
        sys.argv[0] = __file__
    for module in _MODULES:
        try:
            import_module(module)
        except Exception as error:  # noqa: PERF203  two modules; a broken installation raises anything
            msg = f"the ascend device needs {module}, which cannot be imported ({error}). To install: {INSTALL}"
            raise DeviceUnavailable(msg) from error
    import mindspore

    try:
        if target == "cpu":
            mindspore.set_device("CPU")
            return
        mindspore.set_device("Ascend", device_id)
        if memory is not None:
            mindspore.runtime.set_memory(max_size=memory)
    except RuntimeError as error:
        msg = (
            f"MindSpore {mindspore.__version__} cannot use Ascend device {device_id} here: {_reason(str(error))}. It "
            "needs an Ascend NPU with its driver, and CANN with its set_env.sh sourced; without them, "
            'AscendOptions(target="cpu") runs the same model slowly on the CPU'
        )
        raise DeviceUnavailable(msg) from error


def context(target: str, device_id: int, rank: Rank, *, legacy: bool) -> dict[str, Any]:
    """Set this process up for inference, and return the settings, which mindformers wants again with the model's.

    Args:
        target: as for `require`.
        device_id: as for `require`.
        rank: which of the ranks this process is.
        legacy: for mindformers' older models, which share names with the mcore ones.
    """
    from mindformers import build_context

    npu = {"device_target": "Ascend", "device_id": device_id}
    settings = {
        "run_mode": "predict",
        "use_legacy": legacy,
        "use_parallel": rank.size > 1,
        "context": {"mode": "GRAPH_MODE", **({"device_target": "CPU"} if target == "cpu" else npu)},
        "parallel": {"parallel_mode": "MANUAL_PARALLEL" if rank.size > 1 else "STAND_ALONE"},
        "parallel_config": {"data_parallel": 1, "model_parallel": rank.size},
        "postprocess_use_numpy": True,
    }
    build_context(settings)
    return settings


def versions() -> dict[str, str]:
    """Return the versions that a compiled graph depends on."""
    return {module: version(module) for module in _MODULES}


def _prepare() -> None:
    """Ask for inference, keep log files out of the working directory, and the log to what matters."""
    os.environ["RUN_MODE"] = "predict"  # read while a model is built
    logs = Path(tempfile.gettempdir()) / f"langchain-accel-ascend-{os.getuid()}"
    os.environ.setdefault("LOCAL_DEFAULT_PATH", str(logs))
    os.environ.setdefault("LOG_MF_PATH", str(logs / "log"))
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings: deprecations and fallbacks of its own code


def _reason(text: str) -> str:
    """Return the lines of MindSpore's error that say something."""
    lines = [line.strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if "cannot open shared object" in line) or (lines[0] if lines else text)
