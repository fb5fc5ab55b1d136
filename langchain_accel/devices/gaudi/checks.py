"""What both stacks ask of a plan and a model folder before they load it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from langchain_accel.devices.base import Plan
from langchain_accel.devices.gaudi import demand
from langchain_accel.devices.memory import check_memory, weight_bytes
from langchain_accel.devices.torch_rows import loading, positions


def dtype_of(plan: Plan) -> torch.dtype:
    """Return the dtype of weights and KV cache: what a plan asks for, or bfloat16."""
    dtype: torch.dtype = getattr(torch, "bfloat16" if plan.dtype == "auto" else plan.dtype)
    return dtype


def read_config(plan: Plan) -> Any:
    """Read a model's config, and refuse what no device of rows serves.

    Raises:
        ModelRejected: the folder or the model cannot be used.
        PlanRejected: `max_len` is beyond the model's positions.
    """
    config = loading.read_config(Path(plan.model), trust_remote_code=plan.trust_remote_code)
    loading.refuse_unsupported(config, plan.max_len)
    positions.check_positions(config, plan.max_len)
    return config


def check_fits(plan: Plan, config: Any, dtype: torch.dtype, hpu: Any) -> None:
    """Refuse a plan that needs more memory than the Gaudi has free.

    Raises:
        PlanRejected: with the numbers.
    """
    weights = weight_bytes(Path(plan.model), dtype.itemsize)
    need = demand(plan, config.to_dict(), weights=weights, item_bytes=dtype.itemsize)
    check_memory(**asdict(need), rows=plan.rows, max_len=plan.max_len, free=hpu.mem_get_info()[0])
