"""Fused kernels, in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ._counters import COUNTERS


class FusedRMSNorm:
    """As the kernel of that name."""

    @staticmethod
    def apply(x: torch.Tensor, weight: torch.Tensor, epsilon: float, *_: Any) -> torch.Tensor:
        COUNTERS.fused += 1
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


class RotaryPosEmbeddingHelperV2:
    """As the kernel of that name, in its blockwise mode."""

    @staticmethod
    def apply(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, *_: Any) -> torch.Tensor:
        COUNTERS.fused += 1
        cos, sin = (table.squeeze(0).squeeze(0)[positions].unsqueeze(1) for table in (cos, sin))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin


class FusedSDPA:
    """As the kernel of that name."""

    @staticmethod
    def apply(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
        dropout: float = 0.0,
        is_causal: bool = False,  # noqa: FBT002  the vendor's signature
        scale: float | None = None,
        softmax_mode: str = "None",
        recompute: bool | None = None,
        valid_lengths: torch.Tensor | None = None,
        padding_side: str = "left",
        *_: Any,
    ) -> torch.Tensor:
        COUNTERS.fused += 1
        if key.shape[1] != query.shape[1]:
            key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], 1) for each in (key, value))
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        least = torch.finfo(scores.dtype).min
        queries, keys = query.shape[-2], key.shape[-2]
        if is_causal:
            seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
            if valid_lengths is not None:
                columns = torch.arange(keys, device=query.device)
                seen = seen & (columns[None] >= keys - valid_lengths[:, None])[:, None, None]
            scores = scores.masked_fill(~seen, least)
        if mask is not None:
            scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else scores + mask
        return functional.softmax(scores.float(), -1).to(query.dtype) @ value


_MOE = (
    "mixture_of_experts(Tensor hidden_states, Tensor expert_routing_table, Tensor router_weights, Tensor[] w1, "
    "Tensor[] w2, Tensor[] w3, bool permuted_weights, str activation, int experts_min, int experts_max) -> Tensor"
)
_operations = torch.library.Library("hpu", "DEF")
_operations.define(_MOE)


def _mixture_of_experts(
    hidden: torch.Tensor,
    routing: torch.Tensor,
    weights: torch.Tensor,
    w1: list[torch.Tensor],
    w2: list[torch.Tensor],
    w3: list[torch.Tensor],
    permuted_weights: bool,
    activation: str,
    experts_min: int,
    experts_max: int,
) -> torch.Tensor:
    COUNTERS.fused += 1
    mixed = torch.zeros_like(hidden)
    for index, expert in enumerate(range(experts_min, experts_max + 1)):
        inner = functional.silu(functional.linear(hidden, w1[index])) * functional.linear(hidden, w2[index])
        share = ((routing == expert) * weights).sum(-1, keepdim=True)
        mixed = mixed + functional.linear(inner, w3[index]) * share
    return mixed


_operations.impl("mixture_of_experts", _mixture_of_experts, "CompositeImplicitAutograd")
