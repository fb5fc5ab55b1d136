"""Stand-ins, in operators that MindSpore's CPU backend has, for the kernels of the inference path that only Ascend has.

They are installed for `AscendOptions(target="cpu")` and replace kernels only: models, graphs, phases, block tables,
slots, weight loading and sharding are mindformers' and MindSpore's own. Slow: for trying things out, and for tests.
"""

# ruff: noqa: ARG001  what is replaced says which arguments there are

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import mint, ops
from mindspore.ops import operations

from langchain_accel.devices.ascend.blocks import Strips

_FAR = 1e9
_accumulate = operations.CumSum()
_scatter = operations.ScatterNdUpdate()


def install(strips: Strips) -> None:
    """Replace kernels in this process. Call it before a model is built."""
    from mindformers.models.llama import llama, llama_layer
    from mindformers.modules import infer_attention, paged_attention_mgr
    from mindformers.parallel_core.inference import model_utils, parallel_state
    from mindformers.parallel_core.inference.base_models.common.embeddings import rotary_pos_embedding
    from mindformers.parallel_core.inference.base_models.gpt import gpt_model
    from mindformers.parallel_core.inference.transformer import flash_attention, norm

    attention, manager = flash_attention.FlashAttention, paged_attention_mgr.PagedAttentionMgr
    for cell in (attention, manager):  # shapes of cache and tables are not known while a dynamic graph is compiled
        cell.cpu_block_size, cell.cpu_columns = strips.block_size, strips.columns
    attention.construct = _attend
    norm.RMSNorm.construct = _rms_norm
    rotary_pos_embedding.RotaryEmbedding.construct = _rotate_mcore
    rotary_pos_embedding.RotaryEmbedding.is_prefill = True
    model_utils.InferModelMixin.add_flags_custom_mcore = _flagging(model_utils.InferModelMixin.add_flags_custom_mcore)
    gpt_model.GPTModel.pre_gather_func = _last_tokens
    gpt_model.GPTModel.__init__ = _keeping_lengths(gpt_model.GPTModel.__init__)
    manager.construct = _write_parameters
    manager.paged_attn = _attend_blocks
    infer_attention.InferRotaryEmbedding.construct = _rotate_gathered
    llama_layer.check_rmsnorm_big_kernel_valid = lambda: False  # its norm in plain operators
    llama.LlamaForCausalLM.pre_gather_func = _chosen_tokens
    ops.function.array_func.split_ext = _split
    mint.cumsum = _cumsum
    parallel_state.ProcessGroup.create_this_group = _join_world


def _flagging(add_flags: Callable[[Any, bool], None]) -> Callable[[Any, bool], None]:
    """Tell rotary embeddings, too, which graph is compiled next."""

    def flag(model: Any, is_prefill: bool) -> None:  # noqa: FBT001  the library's signature
        add_flags(model, is_prefill)
        for _, cell in model.cells_and_names():
            if hasattr(cell, "cos_cache"):
                cell.add_flags(is_prefill=is_prefill)

    return flag


def _keeping_lengths(init: Callable[..., None]) -> Callable[..., None]:
    """Leave lengths where they are: on an NPU a graph moves them to the CPU."""

    def initialise(model: Any, *arguments: Any, **keywords: Any) -> None:
        init(model, *arguments, **keywords)
        model.move_lens_to_cpu = False

    return initialise


# What follows is compiled by MindSpore, and written in the part of Python that it reads.


def _rms_norm(self: Any, x: Any) -> Any:
    wide = x.astype(self.compute_type)
    return (wide * ops.rsqrt((wide * wide).mean(-1, keep_dims=True) + self.eps) * self.weight).astype(x.dtype)


def _places(tokens: Any, lengths: Any) -> Any:
    """Return, for packed tokens `[T, any]` of sequences of these lengths, place in all, sequence and its start."""
    place = _accumulate(ops.ones_like(tokens[:, 0]).astype(ms.float32), 0) - 1.0
    lengths = lengths.reshape(-1).astype(ms.float32)
    after = (place.reshape(-1, 1) >= _accumulate(lengths, 0).reshape(1, -1)).astype(ms.float32)
    return place, after.sum(-1), (after * lengths.reshape(1, -1)).sum(-1)


def _rotate(x: Any, cos: Any, sin: Any, width: Any) -> Any:
    heads = x.reshape(-1, x.shape[-1] // width, width)
    half = width // 2
    cos, sin = cos.reshape(-1, 1, width), sin.reshape(-1, 1, width)
    return (heads * cos + ops.concat((-heads[..., half:], heads[..., :half]), -1) * sin).reshape(x.shape)


def _rotate_mcore(self: Any, query: Any, key: Any, cos: Any, sin: Any, lengths: Any) -> Any:
    if self.is_prefill:  # the tables of all positions; else they are gathered already
        place, _, start = _places(query, lengths)
        position = (place - start).astype(ms.int32)
        cos, sin = ops.gather(cos, position, 0), ops.gather(sin, position, 0)
    return _rotate(query, cos, sin, self.kv_channels), _rotate(key, cos, sin, self.kv_channels)


def _rotate_gathered(self: Any, query: Any, key: Any, freqs_cis: Any, batch_valid_length: Any) -> Any:
    cos, sin, _ = freqs_cis
    return _rotate(query, cos, sin, cos.shape[-1]), _rotate(key, cos, sin, cos.shape[-1])


def _write(cache: Any, new: Any, slots: Any, block_size: Any) -> Any:
    slots = slots.reshape(-1, 1)
    heads, width = cache.shape[2], cache.shape[3]
    return _scatter(cache, ops.concat((slots // block_size, slots % block_size), 1), new.reshape(-1, heads, width))


def _paged(
    query: Any,
    keys: Any,
    values: Any,
    tables: Any,
    valid: Any,
    mask: Any,
    lanes: Any,
    heads: Any,
    kv_heads: Any,
    width: Any,
    columns: Any,
) -> Any:
    """Attend blocks: `lanes` is the sequence of each token, `mask` what is added to its scores, column by column."""
    flat = tables.reshape(-1)
    k = ops.gather(keys, flat, 0).reshape(-1, kv_heads, width).transpose(1, 2, 0).expand_dims(1)
    v = ops.gather(values, flat, 0).reshape(-1, kv_heads, width).transpose(1, 0, 2).expand_dims(1)
    q = query.reshape(-1, kv_heads, heads // kv_heads, width).transpose(1, 2, 0, 3)
    place = _accumulate(ops.ones_like(k[0, 0, 0]).astype(ms.float32), 0) - 1.0
    lane = ops.floor(place / columns)  # of each key
    column = (place - lane * columns).astype(ms.int32)
    last = ops.ones_like(mask[0]).astype(ms.float32).sum() - 1.0  # a mask of one column counts for all
    added = ops.gather(mask, ops.minimum(column.astype(ms.float32), last).astype(ms.int32), 1).astype(ms.float32)
    filled = ops.gather(valid.reshape(-1).astype(ms.float32), lane.astype(ms.int32), 0) > column.astype(ms.float32)
    own = ops.logical_and(lanes.reshape(-1, 1) == lane.reshape(1, -1), filled.reshape(1, -1)).astype(ms.float32)
    scores = ops.matmul(q, k).astype(ms.float32) * (1.0 / width**0.5) + added + (own - 1.0) * _FAR
    out = ops.matmul(ops.softmax(scores, -1).astype(v.dtype), v)
    return out.transpose(2, 0, 1, 3).reshape(query.shape)


def _attend(
    self: Any,
    query: Any,
    key: Any,
    value: Any,
    slot_mapping: Any = None,
    block_tables: Any = None,
    batch_valid_length: Any = None,
    context_lens_tensor: Any = None,
    q_seq_lens: Any = None,
    actual_seq_qlen: Any = None,
    actual_seq_kvlen: Any = None,
    attn_mask: Any = None,
    padding_mask: Any = None,
    prefix: Any = None,
    key_cache: Any = None,
    value_cache: Any = None,
) -> Any:
    heads, kv_heads, width = self.head_num, self.kv_head_num, self.hidden_size_per_attention_head
    written = (
        _write(key_cache, key, slot_mapping, self.cpu_block_size),
        _write(value_cache, value, slot_mapping, self.cpu_block_size),
    )
    query = ops.depend(query, written)  # caches are inputs of the graph: nothing else puts writing before reading
    if not self.is_prefill:
        _, lanes, _ = _places(query, q_seq_lens)
        tables = ops.depend(block_tables, written)
        return _paged(query, key_cache, value_cache, tables, batch_valid_length, attn_mask, lanes, heads, kv_heads,
                      width, self.cpu_columns)  # fmt: skip
    q = query.reshape(-1, kv_heads, heads // kv_heads, width).transpose(1, 2, 0, 3)
    k = key.reshape(-1, kv_heads, 1, width).transpose(1, 2, 3, 0)
    v = value.reshape(-1, kv_heads, 1, width).transpose(1, 2, 0, 3)
    place, sequence, _ = _places(query, actual_seq_qlen)
    same = sequence.reshape(-1, 1) == sequence.reshape(1, -1)
    seen = ops.logical_and(same, place.reshape(-1, 1) >= place.reshape(1, -1)).astype(ms.float32)
    scores = ops.matmul(q, k).astype(ms.float32) * (1.0 / width**0.5) + (seen - 1.0) * _FAR
    out = ops.matmul(ops.softmax(scores, -1).astype(v.dtype), v)
    return out.transpose(2, 0, 1, 3).reshape(-1, heads * width)


def _last_tokens(self: Any, output: Any, context_lens_tensor: Any, seq_lens_tensor: Any) -> Any:
    if self.is_prefill:
        output = self.gather(output, _cumsum(seq_lens_tensor - context_lens_tensor, 0) - 1, 0)
    return output


def _write_parameters(self: Any, key: Any, value: Any, slot_mapping: Any, batch_valid_length: Any = None) -> Any:
    written = (
        _write(self.key_cache, key, slot_mapping, self.cpu_block_size),
        _write(self.value_cache, value, slot_mapping, self.cpu_block_size),
    )
    return ops.depend(key, written)


def _attend_blocks(
    self: Any, query: Any, batch_valid_length: Any, block_tables: Any, attn_mask: Any = None, q_seq_lens: Any = None
) -> Any:
    width = self.head_dim
    tokens = query.reshape(-1, self.n_heads * width)
    lengths = ops.ones_like(batch_valid_length) if q_seq_lens is None else q_seq_lens
    _, lanes, _ = _places(tokens, lengths)
    if attn_mask is None:
        mask = ops.zeros_like(tokens[:1, :1])
    else:
        mask = attn_mask.astype(ms.bool_).astype(query.dtype) * -10000
    out = _paged(tokens, self.key_cache, self.value_cache, block_tables, batch_valid_length, mask, lanes,
                 self.n_heads, self.n_kv_heads, width, self.cpu_columns)  # fmt: skip
    return out.reshape(query.shape)


def _chosen_tokens(self: Any, pre_gather: Any, output: Any, batch_valid_length: Any, gather_index: Any = None) -> Any:
    if not pre_gather:
        return output
    if gather_index is None:
        return self.gather(output, batch_valid_length - 1, 1)
    return self.prefill_gather_flatten(output.reshape(-1, output.shape[-1]), gather_index - 1, 0)


def _split(x: Any, sizes: Any, axis: Any = -1) -> Any:
    parts, start = [], 0
    for size in sizes:
        parts.append(x[..., start : start + size])
        start += size
    return tuple(parts)


def _cumsum(x: Any, dim: Any) -> Any:
    return _accumulate(x.astype(ms.float32), dim).astype(ms.int32)


def _join_world(self: Any) -> Any:
    """MindSpore's CPU collectives know the group of all processes only, and that under this name."""
    if len(self._global_ranks) == ms.communication.get_group_size():
        self._group = "mccl_world_group"
    self._is_group_created = True
