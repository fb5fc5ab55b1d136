"""Attention over packed groups: a shared beginning is read once, and each conversation sees it and itself only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "packed_groups"


@dataclass(frozen=True)
class Layout:
    """Where a group lies in the packed sequence.

    Attributes:
        prefix: tokens of the shared beginning; may be 0.
        branches: tokens of each conversation after it.
    """

    prefix: int
    branches: tuple[int, ...]

    def __len__(self) -> int:
        """Tokens of the group."""
        return self.prefix + sum(self.branches)

    def visible(self) -> Tensor:
        """`[sum(branches), len(self)]`: True where a conversation's token attends to the beginning or to its own."""
        own = torch.block_diag(*(torch.ones(length, length).tril() for length in self.branches)).bool()
        return torch.cat([torch.ones(len(own), self.prefix, dtype=torch.bool), own], dim=1)


def attend(
    module: nn.Module,  # noqa: ARG001 - the signature is transformers'
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001
    scaling: float,
    *,
    groups: list[Layout] | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of `[1, H, T, D]` heads over groups that follow one another, or one conversation; `[1, T, H, D]`."""
    groups = groups or [Layout(0, (query.shape[2],))]
    sizes = [len(group) for group in groups]
    parts = zip(groups, *(heads.split(sizes, dim=2) for heads in (query, key, value)), strict=True)
    attended = [piece for group, *heads in parts for piece in _group(group, *heads, scaling)]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def _group(group: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Iterator[Tensor]:
    """What a group's shared beginning attends to, then what its conversations do: `[1, H, ., D]`."""
    shared = group.prefix
    if shared:
        first = (heads[:, :, :shared] for heads in (query, key, value))
        yield scaled_dot_product_attention(*first, is_causal=True, scale=scaling)
    mask = group.visible().to(query.device)
    yield scaled_dot_product_attention(query[:, :, shared:], key, value, attn_mask=mask, scale=scaling)


AttentionInterface.register(NAME, attend)
