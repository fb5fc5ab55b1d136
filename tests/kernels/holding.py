"""A model of transformers that computes with the numbers that the kernels compute with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import langchain_accel_kernels as kernels
import numpy as np
import pytest
import torch

from langchain_accel.devices.memory import head_counts
from langchain_accel.devices.native import family, packing
from langchain_accel.devices.native.device import NativeDevice
from tests.tiny_models import ARCHITECTURES, make

WIDE = {"head_dim": 16, "hidden_size": 96, "intermediate_size": 112}
FAMILY = [name for name, (kind, _) in ARCHITECTURES.items() if kind in family.FAMILY]
"""Tiny models whose layers the kernels express."""
SETS = ("avx2", "avx512vnni", "avx512bf16", "amx_emulated", "amx")
"""Instruction sets; processors lack some."""


def make_wide(name: str, folder: Path, **changed: Any) -> Path:
    """Make a tiny model in sizes that the kernels take."""
    kind, numbers = ARCHITECTURES[name]
    sizes = {"hidden_size": 16 * head_counts(numbers)[0]}
    if kind not in family.FAMILY or not family.FAMILY[kind].names.fused:
        sizes = {**WIDE, **sizes}
    return make(name, folder, **{**sizes, **changed})


def have(name: str) -> bool:
    """Say whether this processor has an instruction set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANGCHAIN_ACCEL_INSTRUCTIONS", name)
        return kernels.instructions() == name


def hold_what_kernels_hold(model: Any, device: NativeDevice) -> None:
    """Give a model of transformers the numbers that the kernels hold; tokens are rounded as there."""
    layers, ends = device._model._kept
    member, numbers = family.FAMILY[model.config.model_type], device._model.numbers
    order = packing._order(numbers.heads, numbers.kv_heads, numbers.width) if member.names.fused else None
    decoder = getattr(model, member.names.decoder)
    _hold_norm(getattr(decoder, member.names.norm), ends.norm, member.norm_offset)
    for module, layer in zip(getattr(decoder, member.names.layers), layers, strict=True):
        first, second = (
            next(filter(None, (getattr(module, name, None) for name in names)))
            for names in (member.names.before_attention, member.names.before_mlp)
        )
        _hold_norm(first, layer.norm, member.norm_offset)
        if second is first:  # one norm, whose weights have taken two sets of factors in the kernels
            ratio = torch.from_numpy(layer.inner_norm.weight / layer.norm.weight)
            for name in member.names.gate_up:
                module.get_submodule(name).register_forward_pre_hook(partial(_scaled, ratio))
        else:
            _hold_norm(second, layer.inner_norm, member.norm_offset)
    held = {
        f"{index}.{name}": getattr(layer, name)
        for index, layer in enumerate(layers)
        for name in ("qkv", "out", "gate_up", "down")
    }
    for name, parts in packing.products(model):
        product = held.get(name, ends.head)
        plain = replace(product, bias=None)
        whole = torch.from_numpy(kernels.linear(plain, np.eye(product.inputs, dtype=np.float32)).T.copy())
        sizes = [part.out_features for part in parts]
        biases = (
            torch.zeros(len(whole)) if product.bias is None else torch.from_numpy(product.bias[: len(whole)].copy())
        )
        if order is not None and name.endswith(".qkv"):
            whole, biases = whole[np.argsort(order)], biases[np.argsort(order)]
        for part, weight, bias in zip(parts, whole.split(sizes), biases.split(sizes), strict=True):
            part.weight = torch.nn.Parameter(weight)
            if part.bias is not None:
                part.bias = torch.nn.Parameter(bias)
            if product.dtype in ("int8", "int4"):
                part.register_forward_pre_hook(_rounded)
            if product.dtype == "bfloat16_pairs":
                part.register_forward_pre_hook(lambda _module, arguments: arguments[0].bfloat16().float())


def _hold_norm(module: torch.nn.Module, norm: kernels.Norm, offset: float) -> None:
    module.weight = torch.nn.Parameter(torch.from_numpy(norm.weight - offset))
    if norm.bias is not None:
        module.bias = torch.nn.Parameter(torch.from_numpy(norm.bias.copy()))


def _scaled(ratio: torch.Tensor, _module: Any, arguments: tuple[torch.Tensor]) -> torch.Tensor:
    return arguments[0] * ratio


def _rounded(_module: Any, arguments: tuple[torch.Tensor]) -> torch.Tensor:
    tokens = arguments[0]
    scales = tokens.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (tokens / scales).round() * scales
