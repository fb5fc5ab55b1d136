"""Linear layers with 8-bit weights, computed by oneDNN in 8-bit integers."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from langchain_accel.devices.native import balance
from langchain_accel.devices.native.calibration import Inputs
from langchain_accel.errors import DeviceUnavailable, ModelRejected

_INSTRUCTIONS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})

_LEVELS = 127
_ZERO = 128  # oneDNN takes inputs as unsigned bytes

OUTLIER = 16.0
"""Largest number of a token over its root mean square from which one byte each is too coarse for the others."""


class Int8Linear(nn.Module):
    """A linear layer in 8-bit integers: a scale per row of the weight, and one per token, found as it comes.

    Sums are exact, so that a token's result does not depend on what shares its step. A token with outliers (Dettmers
    et al. 2022, arXiv:2208.07339), which a single scale would round to nothing but them, is computed twice, as value
    and as what rounding left of it: 15 bits in all.

    Args:
        linear: the layer to replace; its weight is not kept.
        seen: what a text showed of its inputs; None for nothing.

    Attributes:
        in_features: width of the input.
        out_features: width of the output.
    """

    def __init__(self, linear: nn.Linear, seen: Inputs | None = None) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        weight, self._factors = balanced(linear, seen)
        scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _LEVELS
        # Plain attributes: an opaque tensor can be neither moved, cast nor saved as a parameter can.
        self._weight = torch.ops.onednn.qlinear_prepack((weight / scales[:, None]).round().to(torch.int8), None)
        self._scales = scales
        self._zeros = torch.zeros(self.out_features, dtype=torch.int64)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return `inputs @ weight.T + bias` for `[..., in_features]` inputs, in their dtype."""
        tokens = inputs.reshape(-1, self.in_features).float() / self._factors
        levels, scales = _quantise(tokens)
        mean_square = torch.linalg.vector_norm(tokens, dim=1, keepdim=True) / self.in_features**0.5
        coarse = (scales * _LEVELS > OUTLIER * mean_square).nonzero()[:, 0]
        if len(coarse):
            rest = tokens[coarse] - (levels[coarse].float() - _ZERO) * scales[coarse]
            finer, fine_scales = _quantise(rest)
            sums = self._sums(torch.cat([levels, finer]))
            output = sums[: len(tokens)] * scales
            output[coarse] += sums[len(tokens) :] * fine_scales
        else:
            output = self._sums(levels) * scales
        if self.bias is not None:
            output += self.bias
        return output.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)

    def _sums(self, levels: torch.Tensor) -> torch.Tensor:
        """`[T, out_features]` float32, as if a token's scale were 1."""
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, _ZERO, self._weight, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product


def balanced(linear: nn.Linear, seen: Inputs | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a layer's weight for inputs that are divided by factors, float32, and the factors, `[in_features]`.

    Args:
        linear: the layer.
        seen: what a text showed of its inputs, by which outliers of these move into the weight; None leaves all alike.
    """
    weight = linear.weight.detach().float()
    if seen is None:
        return weight, torch.ones(linear.in_features)
    factors = torch.from_numpy(balance.between(seen.largest, weight.abs().amax(0).numpy()))
    return weight * factors, factors


def _quantise(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unsigned bytes around `_ZERO`, and the scale `[T, 1]` that makes numbers of them again."""
    scales = tokens.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _LEVELS
    return torch.round(tokens / scales).add_(_ZERO).to(torch.uint8), scales


def check_processor(flags: Collection[str]) -> None:
    """Refuse processors on which 8-bit products are slow, and wrong where they overflow 16 bits.

    Raises:
        DeviceUnavailable: none of the instructions is there.
    """
    if not _INSTRUCTIONS.intersection(flags):
        msg = (
            f"weights='int8' needs one of the instructions {', '.join(sorted(_INSTRUCTIONS))}, and this processor has "
            "none of them: leave weights out to compute in float32"
        )
        raise DeviceUnavailable(msg)


def check_covered(model: nn.Module) -> None:
    """Refuse a model with matrices that are no linear layers: int8 would hardly change it.

    Raises:
        ModelRejected: names one.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and id(parameter) not in tables:
            msg = (
                f"{type(model).__name__} keeps {name} {tuple(parameter.shape)} outside of linear layers, and "
                "weights='int8' replaces linear layers only: leave weights out"
            )
            raise ModelRejected(msg)
