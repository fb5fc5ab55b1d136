"""Rounds a model to few bits once, into a folder that maps into memory in a moment and serves as `model=`."""

from __future__ import annotations

from pathlib import Path

from langchain_accel.devices import folders
from langchain_accel.devices.base import Plan, Progress, silent
from langchain_accel.devices.native import loading, members, packed
from langchain_accel.errors import DeviceUnavailable, PlanRejected


def export(
    plan: Plan, output: Path, weights: str, *, threads: int, push_to_hub: str | None = None, progress: Progress = silent
) -> Path:
    """Write a model with rounded weights, as the kernels take them; any rows and columns can be served from it.

    Args:
        plan: what to export; `plan.model` is a local folder.
        output: where to put it; absent or empty.
        weights: `"int8"` or `"int4"`.
        threads: that share the packing.
        push_to_hub: id of a repository to upload the folder to as well, made if absent.
        progress: told about each stage.

    Raises:
        DeviceUnavailable: torch and transformers are not installed.
        ModelRejected: the model cannot be used.
        PlanRejected: the kernels do not serve this model here, it is exported already, or `output` is in use.
    """
    folders.refuse_used(output)
    source = Path(plan.model)
    if packed.holds(source):
        msg = f"{source} is exported already: give it as the model"
        raise PlanRejected(msg)
    try:
        from langchain_accel.devices.torch_rows import loading as checkpoints
    except ImportError as error:
        msg = f'exporting needs torch and transformers ({error}): pip install "langchain-accel[xeon]"'
        raise DeviceUnavailable(msg) from error
    config = checkpoints.read_config(source, trust_remote_code=plan.trust_remote_code)
    checkpoints.refuse_unsupported(config, plan.max_len)
    if (reason := members.unusable(config.to_dict())) is not None:
        msg = f"{weights} weights are for langchain-accel-kernels, which do not serve this model here: {reason}"
        raise PlanRejected(msg)
    model = loading.pack(plan, config, weights, threads, progress)

    def make(folder: Path) -> None:
        packed.write(model, folder)
        folders.copy_beside(source, folder)

    folders.make_whole(output, make)
    if push_to_hub is not None:
        progress(f"uploading to {push_to_hub}", 0, 1)
        folders.upload(output, push_to_hub)
        progress(f"uploading to {push_to_hub}", 1, 1)
    return output
