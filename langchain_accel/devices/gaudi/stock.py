"""Stock transformers on the `hpu` device, with this package's own arena and attention: no optimum-habana anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from langchain_accel.devices.base import Device, Plan, Progress
from langchain_accel.devices.gaudi import spec
from langchain_accel.devices.gaudi.checks import check_fits, dtype_of, read_config
from langchain_accel.devices.torch_rows import loading
from langchain_accel.devices.torch_rows.device import open_device


def open_stock(plan: Plan, hpu: Any, progress: Progress) -> Device:
    """Load a model as the Xeon device does, onto a Gaudi.

    Args:
        plan: what to load, options included.
        hpu: torch's module of that name.
        progress: told about loading.

    Raises:
        ModelRejected: the model cannot be used, or does not compute the same as row steps.
        PlanRejected: it does not fit.
    """
    dtype: torch.dtype = dtype_of(plan)
    config = read_config(plan)
    check_fits(plan, config, dtype, hpu)
    progress("loading weights", 0, 1)
    model = loading.load_model(Path(plan.model), config, dtype, trust_remote_code=plan.trust_remote_code).to("hpu")
    progress("loading weights", 1, 1)
    serves = spec(plan, plan.options, config.vocab_size)
    return open_device(model, dtype, serves, pack=None, progress=progress, on_close=hpu.synchronize)
