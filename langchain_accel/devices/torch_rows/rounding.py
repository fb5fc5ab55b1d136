"""Who computes rounded weights in torch's steps: the kernels where they are, else torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from langchain_accel.devices import selfcheck
from langchain_accel.devices.base import IntArray, Progress
from langchain_accel.devices.native import calibration, members
from langchain_accel.devices.processors import cpu_flags
from langchain_accel.devices.torch_rows import linears, quantised
from langchain_accel.devices.torch_rows.arena import TorchArena
from langchain_accel.devices.torch_rows.attention import Arena
from langchain_accel.devices.torch_rows.native_arena import NativeArena
from langchain_accel.devices.torch_rows.native_linear import NativeLinear
from langchain_accel.errors import PlanRejected

if TYPE_CHECKING:
    import langchain_accel_kernels as kernels


@dataclass(frozen=True)
class Rounding:
    """How a model with rounded weights is made and computed.

    Attributes:
        tolerance: how far its logits may be off those of the exact weights.
        linear: makes, of a model, what replaces its linear layers.
        arena: makes the KV cache, from its rows and columns.
        threads: for torch itself.
        close: releases what the layers share, once the model is gone.
    """

    tolerance: selfcheck.Tolerance
    linear: Callable[[Any], linears.Pack]
    arena: Callable[[int, int], Arena]
    threads: int
    close: Callable[[], object] = lambda: None


def choose(
    folder: Path,
    config: Mapping[str, Any],
    weights: str,
    cache: torch.dtype,
    threads: int,
    progress: Progress,
    *,
    kernels: bool,
) -> Rounding:
    """Return how a model is rounded that is not served by whole native steps.

    Args:
        folder: of the model.
        config: the model's, with the defaults of its class filled in.
        weights: `"int8"`, or `"int4"`, which leaves the output head, and what does most harm, in 8 bits.
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
        return Rounding(selfcheck.INT8, lambda _model: quantised.Int8Linear, partial(TorchArena, dtype=cache), threads)
    import langchain_accel_kernels

    progress(f"products and attention by the kernels, in torch's steps: {members.refusal(config)}", 1, 1)
    parts = langchain_accel_kernels.Parts(threads)

    def linear(model: Any) -> linears.Pack:
        if weights == "int8":
            return partial(NativeLinear, parts=parts)
        progress("reading a text to see which weights matter", 0, 1)
        return _few_bits(model, calibration.tokens_of(folder, config["vocab_size"]), parts)

    # One thread for torch: more would spin for a while after each of its operations, where the kernels' threads work.
    arena = partial(NativeArena, parts=parts, dtype=cache)
    tolerance = selfcheck.INT8 if weights == "int8" else selfcheck.INT4
    return Rounding(tolerance, linear, arena, 1, parts.close)


def _few_bits(model: Any, tokens: IntArray, parts: kernels.Parts) -> linears.Pack:
    """Return what replaces each linear layer: in 4 bits, or in 8 the head and where a text shows most harm."""
    from langchain_accel.devices.native.packing import sensitive

    linears.straighten(model)
    head = model.get_output_embeddings()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    products = [(name, [layer]) for name, layer in layers.items() if layer is not head]
    importance = calibration.importance(model, products, tokens)
    effects = calibration.effects(model, products, tokens)
    made = {name: NativeLinear(layer, parts, "int4", importance.get(name)) for name, [layer] in products}

    def harm(name: str) -> float:
        return effects[name].harm(lambda inputs: made[name](torch.from_numpy(inputs)).numpy())

    for name in sensitive({name: (harm(name), made[name].size) for name in effects}):
        made[name] = NativeLinear(layers[name], parts)
    found = {id(layers[name]): rounded for name, rounded in made.items()}
    return lambda layer: found.get(id(layer)) or NativeLinear(layer, parts)
