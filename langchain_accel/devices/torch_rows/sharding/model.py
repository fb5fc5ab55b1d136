"""From a model folder to this rank's share of the model."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from langchain_accel.devices.memory import held_dtype
from langchain_accel.devices.torch_rows import loading
from langchain_accel.devices.torch_rows.sharding import autotp, own, tp_plan
from langchain_accel.devices.torch_rows.sharding.ends import split_ends
from langchain_accel.devices.torch_rows.sharding.group import Group
from langchain_accel.devices.torch_rows.sharding.share import check_share, matrices
from langchain_accel.devices.torch_rows.sharding.strategy import Sharder


def load_share(
    folder: Path,
    config: Any,
    dtype: torch.dtype,
    sharder: Sharder,
    group: Group,
    *,
    trust_remote_code: bool,
) -> Any:
    """Load this rank's share of a causal language model.

    Weights stay pages of the mapped files, in the files' dtype, until a share of each is copied and cast: no rank
    holds the whole model in memory of its own. Every rank must call this.

    Args:
        folder: with config and safetensors.
        config: the model's, as read.
        dtype: of the weights kept.
        sharder: what takes the model apart.
        group: the ranks.
        trust_remote_code: run Python code that comes with the folder.

    Raises:
        ModelRejected: the folder cannot be used, or the model was not sharded.
    """
    rank = group.rank
    with torch.device("meta"):
        empty = AutoModelForCausalLM._model_mapping[type(config)](config)  # noqa: SLF001  as from_pretrained does
    held = getattr(torch, held_dtype(folder))
    plan = tp_plan.layer_plan(config) if sharder is Sharder.TRANSFORMERS else {}
    extra = tp_plan.loading_arguments(plan, empty, rank.size) if plan else {}
    model = loading.load_model(folder, config, held, trust_remote_code=trust_remote_code, **extra)
    loaded = [weakref.ref(parameter) for parameter in model.parameters()]
    if sharder is Sharder.TRANSFORMERS:
        tp_plan.unwrap(model, plan, dtype, group.sum)
    elif sharder is Sharder.DEEPSPEED:
        autotp.split_layers(model, rank.size, dtype, group.sum)
    else:
        own.split_layers(model, rank.index, rank.size, dtype, group.sum)
    split_ends(model, rank.index, rank.size, dtype, group.sum)
    gc.collect()
    for parameter in (alive for reference in loaded if (alive := reference()) is not None):
        # What every rank keeps whole (norms, biases, routers). A page of the mapped file would keep all of it mapped.
        parameter.data = parameter.data.to(dtype, copy=True)
    check_share(sum(matrices(empty).values()), matrices(model), rank.size, type(model).__name__)
    return model.eval().requires_grad_(False)
