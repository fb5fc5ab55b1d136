"""Layers of a sharded model: plain linear layers on a share of the weight, and a sum over ranks where one is due."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Sum = Callable[[torch.Tensor], None]
"""Sums a contiguous tensor over the ranks, in place."""


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """Return a linear layer on weights that exist: `[out, in]`, and `[out]` or None. Nothing is initialised."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


class SummedLinear(nn.Module):
    """A linear layer whose inputs are split among the ranks: partial outputs are summed, then the bias is added once.

    Attributes:
        linear: this rank's `[out_features, in_features / ranks]`, without bias.
        bias: `[out_features]`, the same on every rank, or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, reduce: Sum) -> None:
        super().__init__()
        self.linear = linear(weight, None)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._reduce = reduce

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return `[..., out_features]`, whole on every rank, of this rank's `[..., in_features / ranks]`."""
        output: torch.Tensor = self.linear(inputs).contiguous()
        self._reduce(output)
        return output if self.bias is None else output + self.bias


class SplitHead(SummedLinear):
    """The output head: as `SummedLinear`, but its inputs come whole, and each rank takes its own columns."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, reduce: Sum, columns: slice) -> None:
        super().__init__(weight, bias, reduce)
        self._columns = columns

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return `[..., vocab_size]` logits, whole on every rank, of `[..., hidden_size]`."""
        return super().forward(inputs[..., self._columns])


class SplitEmbedding(nn.Module):
    """The token embedding with its width split among the ranks.

    Each rank fills its own columns and leaves zeros in the others', so that the sum is exact in every dtype.

    Attributes:
        whole: width of the embedding over all ranks.
        part: the model's own layer, which may scale what it looks up, on this rank's `[vocab_size, whole / ranks]`.
    """

    def __init__(self, part: Any, whole: int, columns: slice, reduce: Sum) -> None:
        super().__init__()
        self.part = part
        self.whole = whole
        self._columns = columns
        self._reduce = reduce

    @property
    def weight(self) -> torch.Tensor:
        """This rank's weight; models ask it for a dtype."""
        weight: torch.Tensor = self.part.weight
        return weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return `[..., whole]` embeddings of `[...]` token ids."""
        part = self.part(tokens)
        output = part.new_zeros((*part.shape[:-1], self.whole))
        output[..., self._columns] = part
        self._reduce(output)
        return output


class SummedExperts(nn.Module):
    """Experts whose inner width is split among the ranks: what each rank's share of every expert adds is summed.

    Attributes:
        experts: the model's own layer on this rank's weights.
    """

    def __init__(self, experts: nn.Module, reduce: Sum) -> None:
        super().__init__()
        self.experts = experts
        self._reduce = reduce

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the experts' output, whole on every rank."""
        output: torch.Tensor = self.experts(*args, **kwargs).contiguous()
        self._reduce(output)
        return output


def share(weight: torch.Tensor, dim: int, index: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a private copy of rank `index`'s share of a weight along `dim`, cast to `dtype`."""
    width = weight.shape[dim] // size
    # A view of a memory-mapped file until here: `to` alone would keep the file mapped where the dtype is the same.
    return weight.detach().narrow(dim, index * width, width).to(dtype, copy=True).contiguous()
