"""DeepSpeed's automatic tensor parallelism takes decoder layers apart; plain layers of ours take its layers' place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import nn

from langchain_accel.devices.torch_rows.sharding.layers import Sum, SummedLinear, linear
from langchain_accel.errors import ModelRejected


def split_layers(model: Any, size: int, dtype: torch.dtype, reduce: Sum) -> None:
    """Leave each decoder layer with this rank's share, and with the head counts that go with it.

    DeepSpeed's own layers would sum through its communication, which takes its shared memory operation for good
    wherever it is loaded, and could not be packed.

    Args:
        model: a causal language model with whole weights, which may be pages of a mapped file.
        size: all ranks; the process group is open.
        dtype: of the weights kept.
        reduce: sums over the ranks.

    Raises:
        ModelRejected: DeepSpeed fails, or made a layer that is not known here.
    """
    import deepspeed
    import deepspeed.ops

    # DeepSpeed would compile its shared memory operation here, in every rank, and leave the segments behind. Where the
    # ranks sum through it, they have loaded it already; see `shared_memory`.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    head = model.get_output_embeddings()
    # Out of DeepSpeed's sight: it would copy a tied head as a whole before it takes its share.
    model.set_output_embeddings(nn.Identity())
    try:
        with redirect_stdout(sys.stderr), _uncast(model):
            deepspeed.init_inference(
                model,
                # Widths are dealt out in grains of 64 by default: evenly for us, whatever the width.
                tensor_parallel={"tp_size": size, "tp_grain_size": 1},
                dtype=torch.float32,
                replace_with_kernel_inject=False,
            )
    except Exception as error:
        msg = f"DeepSpeed cannot shard {type(model).__name__}: {type(error).__name__}: {error}; use one rank"
        raise ModelRejected(msg) from error
    finally:
        model.set_output_embeddings(head)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__module__ == "deepspeed.module_inject.layers":
                setattr(parent, name, _plain(child, dtype, reduce))


@contextmanager
def _uncast(model: nn.Module) -> Iterator[None]:
    """Keep DeepSpeed from casting the whole model before it takes a share: that is private memory for all of it."""
    model.__dict__["float"] = lambda: model
    try:
        yield
    finally:
        del model.__dict__["float"]


def _plain(layer: Any, dtype: torch.dtype, reduce: Sum) -> nn.Module:
    """Return the layer of ours that computes what a sharded layer of DeepSpeed computes.

    Raises:
        ModelRejected: the layer is of another kind.
    """
    weight = layer.weight.detach().to(dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype, copy=True)
    layer.weight = layer.bias = None  # one layer at a time holds its weight twice, in two dtypes
    kind = type(layer).__name__
    if kind == "LinearAllreduce":
        return SummedLinear(weight, bias, reduce)
    if kind in ("LinearLayer", "fused_LinearLayer") and not layer.gather_output:
        return linear(weight, bias)
    msg = f"DeepSpeed shards this model with a layer {kind}, which is not known here; set tensor_parallel_size=1"
    raise ModelRejected(msg)
