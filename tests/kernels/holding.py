"""A model of transformers that computes with the numbers that the kernels compute with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import langchain_accel_kernels as kernels
import numpy as np
import pytest
import torch

from langchain_accel.devices.native import members, packing
from langchain_accel.devices.native.device import NativeDevice

SETS = ("avx2", "avx512vnni", "avx512bf16", "amx_emulated", "amx")
"""Instruction sets; processors lack some."""


def have(name: str) -> bool:
    """Say whether this processor has an instruction set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANGCHAIN_ACCEL_INSTRUCTIONS", name)
        return kernels.instructions() == name


def hold_what_kernels_hold(model: Any, device: NativeDevice) -> None:
    """Give a model of transformers the numbers that the kernels hold; tokens are rounded as there."""
    layers, ends = device._model._kept
    offset = members.FAMILY[model.config.model_type].norm_offset
    norms = [(model.model.norm, ends.norm)]
    for module, layer in zip(model.model.layers, layers, strict=True):
        norms += [(module.input_layernorm, layer.norm), (module.post_attention_layernorm, layer.inner_norm)]
    for module, numbers in norms:
        module.weight = torch.nn.Parameter(torch.from_numpy(numbers - offset))
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
        for part, weight, bias in zip(parts, whole.split(sizes), biases.split(sizes), strict=True):
            part.weight = torch.nn.Parameter(weight)
            if part.bias is not None:
                part.bias = torch.nn.Parameter(bias)
            if product.dtype in ("int8", "int4"):
                part.register_forward_pre_hook(_rounded)
            if product.dtype == "bfloat16_pairs":
                part.register_forward_pre_hook(lambda _module, arguments: arguments[0].bfloat16().float())


def _rounded(_module: Any, arguments: tuple[torch.Tensor]) -> torch.Tensor:
    tokens = arguments[0]
    scales = tokens.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (tokens / scales).round() * scales
