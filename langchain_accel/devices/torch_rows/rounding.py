"""Who computes rounded weights in torch's steps: the kernels where they are, else torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from langchain_accel.devices import selfcheck
from langchain_accel.devices.base import Progress
from langchain_accel.devices.native import members
from langchain_accel.devices.processors import cpu_flags
from langchain_accel.devices.torch_rows import linears, quantised
from langchain_accel.devices.torch_rows.arena import TorchArena
from langchain_accel.devices.torch_rows.attention import Arena
from langchain_accel.devices.torch_rows.native_arena import NativeArena
from langchain_accel.devices.torch_rows.native_linear import NativeLinear
from langchain_accel.errors import PlanRejected


@dataclass(frozen=True)
class Rounding:
    """How a model with rounded weights is made and computed.

    Attributes:
        tolerance: how far its logits may be off those of the exact weights.
        linear: replaces a linear layer.
        arena: makes the KV cache, from its rows and columns.
        threads: for torch itself.
        close: releases what the layers share, once the model is gone.
    """

    tolerance: selfcheck.Tolerance
    linear: linears.Pack
    arena: Callable[[int, int], Arena]
    threads: int
    close: Callable[[], object] = lambda: None


def choose(
    config: Mapping[str, Any], weights: str, cache: torch.dtype, threads: int, progress: Progress, *, kernels: bool
) -> Rounding:
    """Return how a model is rounded that is not served by whole native steps.

    Args:
        config: the model's, with the defaults of its class filled in.
        weights: `"int8"`, or `"int4"`, which leaves the output head in 8 bits.
        cache: dtype of keys and values.
        threads: that share each step.
        progress: told which way it is, and why.
        kernels: whether langchain-accel-kernels may be used.

    Raises:
        DeviceUnavailable: there are no kernels, and torch's 8-bit products need another processor.
        PlanRejected: there are no kernels for 4-bit weights.
    """
    absent = members.absent() if kernels else "kernels=False"
    if absent is not None:
        if weights == "int4":
            msg = f"weights='int4' needs langchain-accel-kernels: {absent}; weights='int8' is served without them"
            raise PlanRejected(msg)
        quantised.check_processor(cpu_flags())
        progress(f"8-bit weights by torch, which is slower than the kernels: {absent}", 1, 1)
        return Rounding(selfcheck.INT8, quantised.Int8Linear, partial(TorchArena, dtype=cache), threads)
    import langchain_accel_kernels

    progress(f"products and attention by the kernels, in torch's steps: {members.refusal(config)}", 1, 1)
    parts = langchain_accel_kernels.Parts(threads)

    def linear(layer: nn.Linear) -> nn.Module:
        return NativeLinear(layer, parts, "int8" if layer.out_features == config["vocab_size"] else weights)

    # One thread for torch: more would spin for a while after each of its operations, where the kernels' threads work.
    arena = partial(NativeArena, parts=parts, dtype=cache)
    tolerance = selfcheck.INT8 if weights == "int8" else selfcheck.INT4
    return Rounding(tolerance, linear, arena, 1, parts.close)
