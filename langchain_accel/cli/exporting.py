"""A model made ready for its device ahead of time, where a device has something to make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from langchain_accel.devices.base import Plan, Progress, silent
from langchain_accel.errors import PlanRejected
from langchain_accel.runtime.checkpoint import resolve

NOTHING: Mapping[str, str] = MappingProxyType(
    {
        "gaudi": "its graphs are captured at each load and cannot be saved",
        "ascend": "its graphs are compiled at the first load, which keeps them: load once, for example with "
        "`langchain-accel generate`, and every later load on this machine finds them",
        "reference": "it serves a checkpoint as it is",
    }
)
"""Why a device has nothing to export."""


def export(plan: Plan, out: Path, *, push_to_hub: str | None = None, progress: Progress = silent) -> Path:
    """Make what a plan needs to load fast, in a folder that serves as `model=` of the same plan, and return it.

    Args:
        plan: what to load later; its model is a folder or a hub id.
        out: the folder, absent or empty.
        push_to_hub: id of a repository to upload the folder to as well, weights included; made if absent.
        progress: told about each stage.

    Raises:
        PlanRejected: the device has nothing to export, the plan cannot be carried out, or `out` is in use.
        ModelRejected: the model cannot be used.
        DeviceUnavailable: the device's software is not installed.
    """
    if plan.device in NOTHING:
        msg = (
            f"there is nothing to export for the {plan.device} device: {NOTHING[plan.device]}. Give the model itself "
            "where it is served; export is for --device inferentia and xeon"
        )
        raise PlanRejected(msg)
    plan = replace(plan, model=str(resolve(plan.model, plan.revision)), revision=None)
    if plan.device == "xeon":
        from langchain_accel.devices import processors, xeon
        from langchain_accel.devices.native.export import export as packed

        options = plan.options or xeon.Options()
        if options.weights == "exact":
            msg = (
                "a checkpoint serves on xeon as it is; what can be made ahead of time is rounded weights: add "
                "--device-option weights=int8, or weights=int4"
            )
            raise PlanRejected(msg)
        threads = options.threads or processors.cores()
        return packed(plan, out, options.weights, threads=threads, push_to_hub=push_to_hub, progress=progress)
    from langchain_accel.devices.inferentia.export import export as compiled
    from langchain_accel.devices.inferentia.options import Options

    return compiled(plan, plan.options or Options(), out, push_to_hub=push_to_hub, progress=progress)
