"""Layers whose parameters are split between ranks, as in `neuronx_distributed.parallel_layers`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.standins.neuron.machine import MACHINE
from tests.standins.neuron.operators import gather, reduce


def divide(numerator: int, denominator: int) -> int:
    """Divide without remainder."""
    assert numerator % denominator == 0, f"{numerator} is not divisible by {denominator}"
    return numerator // denominator


def padding(size: int, multiple: int) -> int:
    """Return what is missing to the next multiple."""
    return -size % multiple


class Parallel(nn.Module):
    """Holds parameters, each of which is split along one dimension or, with `None`, the same on every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.split_dims: dict[str, int | None] = {}
        self.pad_size = 0
        self.bias: Any = None

    def parameter(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, dim: int | None) -> None:
        """Declare one rank's shape of a parameter."""
        if name == "bias":
            del self.bias
        self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False))
        self.split_dims[name] = dim

    def preshard_hook(self, checkpoint: dict[str, torch.Tensor], key: str) -> None:
        """Pad a whole weight to what splits evenly."""
        dim = self.split_dims.get(key.rsplit(".", 1)[-1])
        if self.pad_size and dim is not None:
            pad = [0, 0] * checkpoint[key].dim()
            pad[2 * (checkpoint[key].dim() - 1 - dim) + 1] = self.pad_size
            checkpoint[key] = F.pad(checkpoint[key], pad)

    def shard(self, name: str, whole: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
        """Return one rank's part of a whole parameter."""
        dim, parameter = self.split_dims.get(name), getattr(self, name)
        if dim is None or ranks == 1:
            return whole
        if getattr(parameter, "fused_qkv", False):
            queries = parameter.num_attention_heads * parameter.head_dim
            others = parameter.num_key_value_heads * parameter.head_dim
            parts = whole.split([queries, others, others], dim)
            return torch.cat([part.chunk(ranks, dim)[rank] for part in parts], dim)
        return whole.chunk(ranks, dim)[rank]


class ColumnParallelLinear(Parallel):
    """Each rank computes a part of the outputs."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,  # noqa: FBT002
        gather_output: bool = True,  # noqa: FBT002
        dtype: torch.dtype = torch.float32,
        pad: bool = False,  # noqa: FBT002
        tensor_model_parallel_group: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.tensor_parallel_group = tensor_model_parallel_group or MACHINE.group
        ranks = self.tensor_parallel_group.size()
        self.gather_output, self.add_bias, self.pad = gather_output, bias, pad
        self.pad_size = padding(output_size, ranks) if pad else 0
        self.output_size = output_size + self.pad_size
        self.parameter("weight", (divide(self.output_size, ranks), input_size), dtype, 0)
        if bias:
            size = self.output_size if gather_output else self.output_size // ranks
            self.parameter("bias", (size,), dtype, None if gather_output else 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight)
        if self.gather_output:
            y = gather(y, -1, self.tensor_parallel_group)
            y = y[..., : self.output_size - self.pad_size] if self.pad_size else y
        return y if self.bias is None else y + self.bias


class RowParallelLinear(Parallel):
    """Each rank holds a part of the inputs; the outputs are summed."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,  # noqa: FBT002
        input_is_parallel: bool = False,  # noqa: FBT002
        dtype: torch.dtype = torch.float32,
        pad: bool = False,  # noqa: FBT002
        tensor_model_parallel_group: Any = None,
        reduce_dtype: torch.dtype = torch.float32,
        **_: Any,
    ) -> None:
        super().__init__()
        assert input_is_parallel, "the stand-in has input_is_parallel=True only"
        self.tensor_parallel_group = tensor_model_parallel_group or MACHINE.group
        ranks = self.tensor_parallel_group.size()
        self.add_bias, self.reduce_dtype = bias, reduce_dtype
        self.pad_size = padding(input_size, ranks) if pad else 0
        self.parameter("weight", (output_size, divide(input_size + self.pad_size, ranks)), dtype, 1)
        if bias:
            self.parameter("bias", (output_size,), dtype, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight)
        y = reduce(y.to(self.reduce_dtype), self.tensor_parallel_group).to(y.dtype)
        return y if self.bias is None else y + self.bias


class ParallelEmbedding(Parallel):
    """Each rank holds a part of the width of every token's vector."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
        shard_across_embedding: bool = False,  # noqa: FBT002
        pad: bool = False,  # noqa: FBT002
        **_: Any,
    ) -> None:
        super().__init__()
        assert shard_across_embedding, "the stand-in has shard_across_embedding=True only"
        ranks = MACHINE.group.size()
        self.embedding_dim = embedding_dim
        self.pad_size = padding(embedding_dim, ranks) if pad else 0
        self.parameter("weight", (num_embeddings, divide(embedding_dim + self.pad_size, ranks)), dtype, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return gather(F.embedding(ids.long(), self.weight), -1)[..., : self.embedding_dim]


class SPMDRank(Parallel):
    """Gives a rank its number: the checkpoint holds all of them, each rank gets one."""

    preshard_hook = None

    def __init__(self, world_size: int, **_: Any) -> None:
        super().__init__()
        self.world_size = world_size
        self.parameter("rank", (1,), torch.int32, 0)

    def get_rank(self) -> torch.Tensor:
        return self.rank

    def shard(self, name: str, whole: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
        return whole[rank : rank + 1]
