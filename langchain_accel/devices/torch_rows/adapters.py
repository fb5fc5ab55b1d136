"""Attention layers that do not ask transformers for their attention function: theirs is replaced, layer by layer.

Each function below is the `forward` of such a layer with `attention` in place of the layer's own arithmetic. It
follows the layer of the same name in transformers and keeps the keywords it is called with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch

from langchain_accel.devices.base import Rank
from langchain_accel.devices.torch_rows.attention import RowAttention

Forward = Callable[..., tuple[torch.Tensor, None]]


@dataclass(frozen=True, slots=True)
class Adapter:
    """How one family's attention layers are replaced.

    Attributes:
        layer: class name of the attention layer.
        forward: its replacement, called as `forward(layer, attention, column_bias, hidden_states, ...)`.
        column_bias: ALiBi of a layer's heads as `[heads, max_len]` float32, from the layer, `max_len`, the dtype that
            the model computes in, and the rank whose heads they are; None where it has rotary positions. Its distance
            to the query's column is left out: what all columns share, softmax does not see.
        keeps_mask: leave the model its own attention's name, by which it decides whether to build a mask; for a model
            that cannot do without one. The mask is not looked at.
    """

    layer: str
    forward: Forward
    column_bias: Callable[[Any, int, torch.dtype, Rank], torch.Tensor | None]
    keeps_mask: bool = False


def install(model: Any, attention: RowAttention, rank: Rank = Rank()) -> None:  # noqa: B008
    """Put `attention` in the place of a model's own attention, or of one rank's share of it."""
    adapter = ADAPTERS.get(model.config.model_type)
    if adapter is None or not adapter.keeps_mask:
        model.config._attn_implementation = attention.name  # noqa: SLF001  no public setter takes any registered name
    if adapter is None:
        return
    weight = next(model.parameters())  # of the model: a packed layer has none
    for layer in model.modules():
        if type(layer).__name__ == adapter.layer:
            column_bias = adapter.column_bias(layer, attention.arena.max_len, weight.dtype, rank)
            if column_bias is not None:
                column_bias = column_bias.to(weight.device)
            layer.forward = partial(adapter.forward, layer, attention, column_bias)


def alibi_slopes(heads: int) -> torch.Tensor:
    """ALiBi slopes of BLOOM and Falcon, `[heads]` float32 (Press et al. 2022, https://arxiv.org/abs/2108.12409).

    A head count that is no power of two takes the missing slopes from the next power's odd places.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (index + 1) / power) for index in range(power)]
    slopes += [2 ** (-8 * (2 * index + 1) / (2 * power)) for index in range(heads - power)]
    return torch.tensor(slopes, dtype=torch.float32)


def mpt_slopes(heads: int) -> torch.Tensor:
    """ALiBi slopes of MPT, `[heads]` float32: even places of the next power of two first, then the odd ones."""
    power = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** (-8 * (index + 1) / power) for index in range(power)]
    if power != heads:
        slopes = (slopes[1::2] + slopes[::2])[:heads]
    return torch.tensor(slopes, dtype=torch.float32)


def of_rank(slopes: Callable[[int], torch.Tensor], heads: int, rank: Rank) -> torch.Tensor:
    """Return the slopes of a rank's own `heads`: they follow from a head's place among the heads of all ranks."""
    return slopes(heads * rank.size)[rank.index * heads : (rank.index + 1) * heads]


@contextmanager
def whole_slopes(model: Any, rank: Rank) -> Iterator[None]:
    """Let transformers' own BLOOM and Falcon run on a rank's heads: they would make the slopes of all of them.

    DeepSpeed mends a method of BLOOM that transformers 5 no longer calls where there is no mask, and not Falcon.
    """
    if rank.size == 1 or model.config.model_type not in ("bloom", "falcon"):
        yield
        return
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    module = import_module(type(decoder).__module__)
    name = "_get_alibi_slopes" if hasattr(module, "_get_alibi_slopes") else "build_alibi_tensor"
    whole = getattr(module, name)

    def own(*args: Any, **kwargs: Any) -> torch.Tensor:
        # One entry per head, for a batch of one: slopes, or slopes times columns.
        alibi: torch.Tensor = whole(*args, **kwargs)
        return alibi.chunk(rank.size)[rank.index]

    setattr(module, name, own)
    try:
        yield
    finally:
        setattr(module, name, whole)


def _falcon_bias(layer: Any, max_len: int, dtype: torch.dtype, rank: Rank) -> torch.Tensor | None:
    if not layer.config.alibi:
        return None
    # Falcon rounds ALiBi to bfloat16 in every dtype, and adds it before the scores are scaled.
    bias = of_rank(alibi_slopes, layer.num_heads, rank).bfloat16()[:, None] * torch.arange(max_len)
    return (bias.to(dtype) / math.sqrt(layer.head_dim)).float()


def _bloom_bias(layer: Any, max_len: int, dtype: torch.dtype, rank: Rank) -> torch.Tensor:
    # Rounded as BLOOM rounds it: in bfloat16, distant columns share a value.
    return (of_rank(alibi_slopes, layer.num_heads, rank)[:, None] * torch.arange(max_len)).to(dtype).float()


def _mpt_bias(layer: Any, max_len: int, dtype: torch.dtype, rank: Rank) -> torch.Tensor:  # noqa: ARG001  always float32
    return of_rank(mpt_slopes, layer.n_heads, rank)[:, None] * torch.arange(max_len)


def _falcon(
    layer: Any,
    attention: RowAttention,
    column_bias: torch.Tensor | None,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

    # One layout serves all three generations: per kv head its query heads, then one key and one value.
    kv_heads = layer.num_kv_heads if layer.new_decoder_architecture or layer.multi_query else layer.num_heads
    fused = layer.query_key_value(hidden_states).unflatten(-1, (kv_heads, -1, layer.head_dim))
    query = fused[..., :-2, :].flatten(2, 3).transpose(1, 2)
    key, value = fused[..., -2, :].transpose(1, 2), fused[..., -1, :].transpose(1, 2)
    if column_bias is None:
        assert position_embeddings is not None
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    output, _weights = attention(layer, query, key, value, None, scaling=layer.inv_norm_factor, column_bias=column_bias)
    return layer.dense(output.flatten(2)), None


def _bloom(
    layer: Any,
    attention: RowAttention,
    column_bias: torch.Tensor | None,
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    fused = layer.query_key_value(hidden_states).unflatten(-1, (layer.num_heads, 3, layer.head_dim))
    query, key, value = fused.transpose(1, 2).unbind(3)
    output, _weights = attention(layer, query, key, value, None, scaling=layer.inv_norm_factor, column_bias=column_bias)
    return layer.dense(output.flatten(2)) + residual, None


def _mpt(
    layer: Any,
    attention: RowAttention,
    column_bias: torch.Tensor | None,
    hidden_states: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    fused = layer.Wqkv(hidden_states)
    if layer.clip_qkv:
        fused = fused.clamp(-layer.clip_qkv, layer.clip_qkv)
    query, key, value = fused.unflatten(-1, (3, layer.n_heads, layer.head_dim)).transpose(1, 3).unbind(2)
    output, _weights = attention(layer, query, key, value, None, scaling=layer.softmax_scale, column_bias=column_bias)
    return layer.out_proj(output.flatten(2)), None


ADAPTERS: dict[str, Adapter] = {
    "falcon": Adapter("FalconAttention", _falcon, _falcon_bias),
    "bloom": Adapter("BloomAttention", _bloom, _bloom_bias),
    "mpt": Adapter("MptAttention", _mpt, _mpt_bias, keeps_mask=True),
}
"""Adapter per `model_type`; every other model must call transformers' attention interface by itself."""
