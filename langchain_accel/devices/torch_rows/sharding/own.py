"""Our own plans, for architectures that neither DeepSpeed nor transformers takes apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from langchain_accel.devices.torch_rows.sharding.layers import Sum, SummedLinear, linear, share


@dataclass(frozen=True, slots=True)
class Column:
    """A linear layer split by its outputs.

    Attributes:
        blocks: `(outputs, split)` of each block of outputs, in order: a fused projection is split block by block, and
            a block that every rank needs stays whole. Empty for one block of all outputs.
    """

    blocks: tuple[tuple[int, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A linear layer split by its inputs, with a sum over the ranks after it."""


@dataclass(frozen=True, slots=True)
class OwnPlan:
    """How one decoder layer is taken apart.

    Attributes:
        layers: name within the decoder layer -> how it is split.
        attention: name of the attention within the decoder layer.
        divided: attributes of the attention that count heads or their widths.
        divided_config: entries of the attention's config that do.
    """

    layers: Mapping[str, Column | Row]
    attention: str
    divided: tuple[str, ...]
    divided_config: tuple[str, ...] = ()


class LocalConfig:
    """A config as one rank's attention sees it: head counts are its own, all else is the model's, at any later time."""

    def __init__(self, config: Any, **entries: Any) -> None:
        self.__dict__.update(entries, _config=config)

    def __getattr__(self, name: str) -> Any:
        """Read what is not overridden from the model's config."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._config, name)


def _phi3(config: Any) -> OwnPlan:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    query, key = config.num_attention_heads * width, config.num_key_value_heads * width
    return OwnPlan(
        layers={
            "self_attn.qkv_proj": Column(((query, True), (key, True), (key, True))),
            "self_attn.o_proj": Row(),
            "mlp.gate_up_proj": Column(((config.intermediate_size, True), (config.intermediate_size, True))),
            "mlp.down_proj": Row(),
        },
        attention="self_attn",
        divided=("num_key_value_heads",),
        divided_config=("num_attention_heads",),
    )


def _gpt2(config: Any) -> OwnPlan:
    return OwnPlan(
        layers={
            "attn.c_attn": Column(((config.hidden_size, True),) * 3),
            "attn.c_proj": Row(),
            "mlp.c_fc": Column(),
            "mlp.c_proj": Row(),
        },
        attention="attn",
        divided=("num_heads", "embed_dim", "split_size"),
    )


def _falcon(config: Any) -> OwnPlan:
    width = config.hidden_size // config.num_attention_heads
    # 7B: all query heads, then the one key and value that every rank keeps. RW: query, key and value head by head.
    one_key = ((config.hidden_size, True), (2 * width, False))
    return OwnPlan(
        layers={
            "self_attention.query_key_value": Column(one_key if config.multi_query else ()),
            "self_attention.dense": Row(),
            "mlp.dense_h_to_4h": Column(),
            "mlp.dense_4h_to_h": Row(),
        },
        attention="self_attention",
        divided=("num_heads",) if config.multi_query else ("num_heads", "num_kv_heads"),
    )


PLANS: Mapping[str, Callable[[Any], OwnPlan]] = MappingProxyType({"phi3": _phi3, "gpt2": _gpt2, "falcon": _falcon})
"""Model type -> the plan of a model with that config."""


def split_layers(model: Any, index: int, size: int, dtype: torch.dtype, reduce: Sum) -> None:
    """Leave each decoder layer with this rank's share, and with the head counts that go with it.

    Args:
        model: a causal language model with whole weights, which may be pages of a mapped file.
        index: this rank.
        size: all ranks.
        dtype: of the weights kept.
        reduce: sums over the ranks.
    """
    plan = PLANS[model.config.model_type](model.config)
    for block in (module for name, module in model.named_modules() if name.rpartition(".")[2].isdecimal()):
        for path, split in plan.layers.items():
            parent_path, _, name = path.rpartition(".")
            parent = block.get_submodule(parent_path)
            setattr(parent, name, _split(getattr(parent, name), split, index, size, dtype, reduce))
        attention = block.get_submodule(plan.attention)
        for name in plan.divided:
            setattr(attention, name, getattr(attention, name) // size)
        if plan.divided_config:
            entries = {name: getattr(attention.config, name) // size for name in plan.divided_config}
            attention.config = LocalConfig(attention.config, **entries)


def _split(layer: Any, split: Column | Row, index: int, size: int, dtype: torch.dtype, reduce: Sum) -> nn.Module:
    # GPT-2's Conv1D is a linear layer with its weight the other way round.
    weight = layer.weight.detach()
    if type(layer).__name__ == "Conv1D":
        weight = weight.t()
    bias = None if layer.bias is None else layer.bias.detach()
    if isinstance(split, Row):
        return SummedLinear(
            share(weight, 1, index, size, dtype), None if bias is None else bias.to(dtype, copy=True), reduce
        )
    blocks = split.blocks or ((weight.shape[0], True),)
    return linear(
        _share_blocks(weight, blocks, index, size, dtype),
        None if bias is None else _share_blocks(bias, blocks, index, size, dtype),
    )


def _share_blocks(
    weight: torch.Tensor, blocks: tuple[tuple[int, bool], ...], index: int, size: int, dtype: torch.dtype
) -> torch.Tensor:
    pieces = weight.split([outputs for outputs, _ in blocks])
    return torch.cat(
        [
            share(piece, 0, index, size, dtype) if split else piece.to(dtype)
            for piece, (_, split) in zip(pieces, blocks, strict=True)
        ]
    )
