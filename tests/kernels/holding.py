"""A model of transformers that computes with the numbers that the kernels compute with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import langchain_accel_kernels as kernels
import numpy as np
import pytest
import torch

from langchain_accel.devices.native import packing
from langchain_accel.devices.native.device import NativeDevice

SETS = ("avx2", "avx512vnni", "amx_emulated", "amx")
"""Instruction sets; processors lack some."""


def have(name: str) -> bool:
    """Say whether this processor has an instruction set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANGCHAIN_ACCEL_INSTRUCTIONS", name)
        return kernels.instructions() == name


def hold_what_kernels_hold(model: Any, device: NativeDevice) -> None:
    """Give a model of transformers the weights that the kernels hold; beside integers, tokens rounded to 8 bits."""
    layers, ends = device._model._kept
    held = {
        f"{index}.{name}": getattr(layer, name)
        for index, layer in enumerate(layers)
        for name in ("qkv", "out", "gate_up", "down")
    }
    for name, parts in packing.products(model):
        product = held.get(name, ends.head)
        plain = replace(product, bias=None)
        whole = torch.from_numpy(kernels.linear(plain, np.eye(product.inputs, dtype=np.float32)).T.copy())
        for part, weight in zip(parts, whole.split([part.out_features for part in parts]), strict=True):
            part.weight = torch.nn.Parameter(weight)
            if product.dtype in ("int8", "int4"):
                part.register_forward_pre_hook(_rounded)


def _rounded(_module: Any, arguments: tuple[torch.Tensor]) -> torch.Tensor:
    tokens = arguments[0]
    scales = tokens.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (tokens / scales).round() * scales
