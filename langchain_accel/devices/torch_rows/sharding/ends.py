"""Both ends of a sharded model: token embedding and output head, split alike so that tied ones stay tied."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from langchain_accel.devices.torch_rows.sharding.layers import SplitEmbedding, SplitHead, Sum, share


def split_ends(model: Any, index: int, size: int, dtype: torch.dtype, reduce: Sum) -> None:
    """Give a rank its columns of the embedding and of the output head.

    Args:
        model: a causal language model whose ends are whole.
        index: this rank.
        size: all ranks.
        dtype: of the weights kept.
        reduce: sums over the ranks.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    whole = embedding.weight.shape[1]
    columns = slice(index * (whole // size), (index + 1) * (whole // size))
    tied = head is not None and head.weight is embedding.weight
    if head is not None:
        bias = None if head.bias is None else head.bias.detach().to(dtype, copy=True)
        split = SplitHead(share(head.weight, 1, index, size, dtype), bias, reduce, columns)
        model.set_output_embeddings(split)
    weight = split.linear.weight if tied else nn.Parameter(share(embedding.weight, 1, index, size, dtype), False)
    embedding.weight = weight
    embedding.embedding_dim = whole // size
    model.set_input_embeddings(SplitEmbedding(embedding, whole, columns, reduce))
