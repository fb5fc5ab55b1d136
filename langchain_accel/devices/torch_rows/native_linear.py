"""Linear layers with rounded weights, computed by langchain-accel-kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from langchain_accel.devices.torch_rows.quantised import balanced

if TYPE_CHECKING:
    import langchain_accel_kernels as kernels

    from langchain_accel.devices.native.calibration import Inputs

_LANES = 16  # the kernels read inputs in whole registers


class NativeLinear(nn.Module):
    """A linear layer in integers, in 8 bits of the same numbers as `Int8Linear`.

    Args:
        linear: the layer to replace; its weight is not kept.
        parts: whose threads compute it.
        weights: `"int8"` or `"int4"`.
        seen: what a text showed of its inputs; None for nothing.

    Attributes:
        in_features: width of the input.
        out_features: width of the output.
    """

    def __init__(
        self, linear: nn.Linear, parts: kernels.Parts, weights: str = "int8", seen: Inputs | None = None
    ) -> None:
        super().__init__()
        import langchain_accel_kernels as kernels

        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self._parts = parts
        self._missing = -linear.in_features % _LANES  # columns of zeros that fill the last register
        weight, factors = balanced(linear, seen)
        self._factors = factors.numpy()
        bias = None if linear.bias is None else linear.bias.detach().float().numpy()
        importance = None
        if seen is not None and weights == "int4":
            importance = np.pad(seen.squares / self._factors**2, (0, self._missing))
        padded = functional.pad(weight, (0, self._missing)).numpy()
        self._layer = kernels.pack(padded, bias, dtype=weights, importance=importance)

    @property
    def size(self) -> int:
        """Bytes of its weight."""
        return self._layer.weight.nbytes

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return `inputs @ weight.T + bias` for `[..., in_features]` inputs, in their dtype."""
        tokens = inputs.float().numpy().reshape(-1, self.in_features) / self._factors
        if self._missing:
            tokens = np.pad(tokens, ((0, 0), (0, self._missing)))
        output = self._parts.linear(self._layer, tokens).reshape(*inputs.shape[:-1], self.out_features)
        return torch.from_numpy(output).to(inputs.dtype)
