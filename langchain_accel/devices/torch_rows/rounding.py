"""Who computes rounded weights in torch's steps: the kernels where they are, else torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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

_Make = Callable[[nn.Linear, str, "calibration.Inputs | None"], nn.Module]
"""Of a linear layer, the dtype of its weight and what a text showed of its inputs: what replaces it."""


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

    def linear(model: Any, make: _Make) -> linears.Pack:
        progress("reading a text to see what rounding would change", 0, 1)
        return _by_text(model, calibration.tokens_of(folder, config["vocab_size"]), weights, make)

    absent = members.absent() if kernels else "kernels=False"
    if absent is not None:
        if weights == "int4":
            msg = f"weights='int4' needs langchain-accel-kernels: {absent}; weights='int8' is served without them"
            raise PlanRejected(msg)
        quantised.check_processor(cpu_flags())
        progress(f"8-bit weights by torch, which is slower than the kernels: {absent}", 1, 1)
        by_torch = partial(linear, make=lambda layer, _dtype, seen: quantised.Int8Linear(layer, seen))
        return Rounding(selfcheck.INT8, by_torch, partial(TorchArena, dtype=cache), threads)
    import langchain_accel_kernels

    progress(f"products and attention by the kernels, in torch's steps: {members.refusal(config)}", 1, 1)
    parts = langchain_accel_kernels.Parts(threads)
    by_kernels = partial(linear, make=lambda layer, dtype, seen: NativeLinear(layer, parts, dtype, seen))
    # One thread for torch: more would spin for a while after each of its operations, where the kernels' threads work.
    arena = partial(NativeArena, parts=parts, dtype=cache)
    tolerance = selfcheck.INT8 if weights == "int8" else selfcheck.INT4
    return Rounding(tolerance, by_kernels, arena, 1, parts.close)


def _by_text(model: Any, tokens: IntArray, weights: str, make: _Make) -> linears.Pack:
    """Return what replaces each linear layer, by what a text shows.

    In 8 bits; or in 4, but for the head and where a text shows most harm.
    """
    from langchain_accel.devices.native.packing import sensitive

    linears.straighten(model)
    head = model.get_output_embeddings()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    seen = calibration.look(model, [(name, [layer]) for name, layer in layers.items()], tokens, weights)
    inputs = {id(layer): seen.inputs.get(name) for name, layer in layers.items()}

    def replace(layer: nn.Linear, dtype: str = "int8") -> nn.Module:
        return make(layer, dtype, inputs.get(id(layer)))

    if weights == "int8":
        return replace
    made = {name: replace(layer, "int4") for name, layer in layers.items() if layer is not head}

    def harm(name: str) -> float:
        return seen.effects[name].harm(lambda tokens: made[name](torch.from_numpy(tokens)).numpy())

    judged = made.keys() & seen.effects.keys()
    for name in sensitive({name: (harm(name), made[name].size) for name in sorted(judged)}):
        made[name] = replace(layers[name])
    found = {id(layers[name]): rounded for name, rounded in made.items()}
    return lambda layer: found.get(id(layer)) or replace(layer)
