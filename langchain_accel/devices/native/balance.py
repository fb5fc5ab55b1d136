"""Outliers of inputs, moved into weights before both are rounded (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438).

A few inputs of a language model's products are far larger than the others, which the one scale of a token would then
round to little. Dividing each by a factor and multiplying its weights with it changes no product. No step pays for it:
the factors go into what makes the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from langchain_accel.devices.base import Logits
from langchain_accel.devices.native.calibration import Inputs

_FLOOR = 1 / 32  # of the mean: what a short text does not show is not nothing


@dataclass(frozen=True)
class Factors:
    """What a product's numbers are divided by.

    Attributes:
        inputs: `[inputs]` float32.
        outputs: `[outputs]` float32.
    """

    inputs: Logits
    outputs: Logits


def between(inputs: Logits, weights: Logits) -> Logits:
    """Return what each input is to be divided by: the root of how much larger it is than its weights, about 1.

    Args:
        inputs: `[n]` float32, largest magnitude of each.
        weights: `[n]` float32, largest magnitude of the weights that it is multiplied with.
    """
    ratio = np.log(_floored(inputs)) - np.log(_floored(weights))
    found: Logits = np.exp((ratio - ratio.mean()) / 2).astype(np.float32)
    return found


def of_layers(
    weights: Mapping[str, Logits],
    outputs: Mapping[str, int],
    seen: Mapping[str, Inputs],
    heads: int,
    kv_heads: int,
    *,
    gated: bool,
) -> dict[str, Factors]:
    """Return the factors of the products of a decoder's layers.

    Inputs of `qkv`, `gate_up` and the head are made by norms, whose weights take the factors. Those of `out` are means
    of values, which several heads share, and those of `down` are multiples of the upper half of `gate_up`; without a
    gate they come out of an activation, and stay as they are.

    Args:
        weights: `[inputs]` float32 by the product's name, largest magnitude of each input's weights.
        outputs: of each product.
        seen: what a text showed of their inputs; those of which it showed nothing stay as they are.
        heads: that query.
        kv_heads: that they share.
        gated: whether `gate_up` has two halves.
    """
    found = {
        name: Factors(np.ones(len(weight), np.float32), np.ones(outputs[name], np.float32))
        for name, weight in weights.items()
    }
    for name in seen.keys() & weights.keys():
        inputs, weight = seen[name].largest, weights[name]
        layer, _, kind = name.partition(".")
        if kind == "down" and not gated:
            continue
        if kind == "out":
            inputs, weight = (part.reshape(kv_heads, heads // kv_heads, -1).max(1).ravel() for part in (inputs, weight))
        factors = between(inputs, weight)
        maker = {"out": f"{layer}.qkv", "down": f"{layer}.gate_up"}.get(kind)
        if maker:
            found[maker].outputs[-len(factors) :] = factors
        if kind == "out":
            factors = np.repeat(factors.reshape(kv_heads, 1, -1), heads // kv_heads, axis=1).ravel()
        found[name].inputs[:] = factors
    return found


def _floored(numbers: Logits) -> Logits:
    return np.maximum(numbers, max(_FLOOR * float(numbers.mean()), float(np.finfo(np.float32).tiny)))
