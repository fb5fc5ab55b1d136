"""Attention of a packed step against the arena: each lane attends to the filled part of its own row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from langchain_accel.devices.torch_rows.arena import Arena
from langchain_accel.devices.torch_rows.step import Lane, Step
from langchain_accel.errors import ModelRejected

# Keywords that transformers' models hand to their attention and that a packed step does not depend on.
_HARMLESS = frozenset(
    {
        "cache_position",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)

_serial = count()


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: Step,
    *,
    scaling: float,
    window: int | None = None,
    soft_cap: float | None = None,
    column_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend every lane's tokens to the columns of its row up to and including their own.

    Args:
        query: `[heads, T, key_dim]`, the packed tokens.
        keys: `[rows, kv_heads, max_len, key_dim]`, this layer's arena; the step's own tokens are written already.
        values: `[rows, kv_heads, max_len, value_dim]`.
        step: lanes of the packed step.
        scaling: factor on the scores.
        window: columns a token sees, itself included; None for all.
        soft_cap: scores become `soft_cap * tanh(scores / soft_cap)`; None for no cap.
        column_bias: `[heads, max_len]` float32 added to the scores of each key column (ALiBi); None for nothing.

    Returns:
        `[T, heads, value_dim]`; zero at padding.
    """
    heads, length, _ = query.shape
    allocate = query.new_zeros if step.padded else query.new_empty
    output = allocate((length, heads, values.shape[-1]))
    for lane in step.lanes:
        first = 0 if window is None else max(0, lane.start - window + 1)
        output[lane.tokens] = _attend_lane(
            query[:, lane.tokens],
            keys[lane.row, :, first : lane.end],
            values[lane.row, :, first : lane.end],
            _bias(step, lane, first, window, column_bias, keys.shape[1]),
            scaling,
            soft_cap,
        ).transpose(0, 1)
    return output


def _attend_lane(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    scaling: float,
    soft_cap: float | None,
) -> torch.Tensor:
    """Attend `[heads, n, key_dim]` queries to `[kv_heads, columns, key_dim]` keys, without repeating the keys.

    Args:
        query: one lane's queries.
        keys: the columns this lane sees.
        values: `[kv_heads, columns, value_dim]`.
        bias: broadcastable to `[kv_heads, heads / kv_heads, n, columns]`, or None.
        scaling: factor on the scores.
        soft_cap: cap on the scores, or None.

    Returns:
        `[heads, n, value_dim]`.
    """
    heads, length, width = query.shape
    kv_heads, columns, _ = keys.shape
    groups = heads // kv_heads
    if soft_cap is not None:
        # The heads of a group become rows of one matrix product.
        rows = query.reshape(kv_heads, groups * length, width)
        scores = torch.matmul(rows, keys.transpose(1, 2)).float().mul_(scaling)
        scores = scores.div_(soft_cap).tanh_().mul_(soft_cap).view(kv_heads, groups, length, columns)
        if bias is not None:
            scores = scores + bias
        weights = torch.softmax(scores, dim=-1).to(values.dtype).view(kv_heads, groups * length, columns)
        output = torch.matmul(weights, values)
    elif length == 1:
        # One token: its heads of a group are the queries of one attention.
        output = functional.scaled_dot_product_attention(
            query.reshape(1, kv_heads, groups, width),
            keys[None],
            values[None],
            attn_mask=None if bias is None else bias.transpose(1, 2).transpose(0, 1),
            scale=scaling,
        )
    else:
        # Batch of kv heads, keys spread over the group's heads with stride zero: nothing is copied.
        output = functional.scaled_dot_product_attention(
            query.reshape(kv_heads, groups, length, width),
            keys[:, None].expand(-1, groups, -1, -1),
            values[:, None].expand(-1, groups, -1, -1),
            attn_mask=bias,
            scale=scaling,
        )
    return output.reshape(heads, length, -1)


def _bias(
    step: Step, lane: Lane, first: int, window: int | None, column_bias: torch.Tensor | None, kv_heads: int
) -> torch.Tensor | None:
    """What is added to a lane's scores: minus infinity where a query may not look, and the bias of each column.

    Returns:
        float32 `[n, columns]`, with a column bias `[kv_heads, groups, n, columns]`; None where nothing needs adding.
    """
    bias = None
    if column_bias is not None:
        bias = column_bias[:, first : lane.end].unflatten(0, (kv_heads, -1))[:, :, None]
    if lane.length == 1:
        return bias  # the columns from `first` on are exactly those the one token sees
    key = (lane.offset, window, column_bias is not None)
    if key not in step.biases:
        queries = torch.arange(lane.start, lane.end)[:, None]
        columns = torch.arange(first, lane.end)[None, :]
        hidden = columns > queries
        if window is not None:
            hidden |= columns <= queries - window
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        step.biases[key] = mask if bias is None else mask + bias
    return step.biases[key]


class RowAttention:
    """The attention of one loaded model: transformers calls it by `name` in place of its own.

    Each loaded model registers its own instance, so two models in a process never share a step.

    Attributes:
        name: what `config._attn_implementation` must be.
        arena: KV cache of all rows.
        step: the packed step in progress, if any.
        windows: layer index -> window it last attended with, None for all columns.
    """

    def __init__(self, arena: Arena) -> None:
        self.name = f"rows_{next(_serial)}"
        self.arena = arena
        self.step: Step | None = None
        self.windows: dict[int, int | None] = {}
        AttentionInterface.register(self.name, self)

    @contextmanager
    def during(self, step: Step) -> Iterator[None]:
        """Attend for `step` while the model's forward runs."""
        self.step = step
        try:
            yield
        finally:
            self.step = None

    def close(self) -> None:
        """Let go of the arena; the registered name stays behind, without weight."""
        self.arena.layers.clear()

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,  # noqa: ARG002  zero outside training
        sliding_window: int | None = None,
        softcap: float | None = None,
        is_causal: bool | None = None,
        column_bias: torch.Tensor | None = None,
        **unknown: Any,
    ) -> tuple[torch.Tensor, None]:
        """Write the step's keys and values, then attend; transformers' attention contract.

        Args:
            module: the model's attention layer; its `layer_idx` names the arena's layer.
            query: `[1, heads, T, key_dim]`.
            key: `[1, kv_heads, T, key_dim]`.
            value: `[1, kv_heads, T, value_dim]`.
            attention_mask: must be None: the lanes say who sees what.
            scaling: factor on the scores; `key_dim ** -0.5` where the model gives none.
            dropout: not applied.
            sliding_window: columns a token sees.
            softcap: cap on the scores.
            is_causal: must not be False for several tokens.
            column_bias: `[heads, max_len]` added to the scores of each key column.
            unknown: refused, unless known to be harmless here.

        Returns:
            `[1, T, heads, value_dim]` and no weights.

        Raises:
            ModelRejected: the model wants something of its attention that is not done here.
        """
        wanted = sorted(name for name, given in unknown.items() if given is not None and name not in _HARMLESS)
        if attention_mask is not None:
            wanted.append("attention_mask")
        several = query.shape[2] > 1  # to one token, GPT-2 says that nothing is causal
        if several and (is_causal is False or getattr(module, "is_causal", True) is False):
            wanted.append("is_causal=False")
        if wanted:
            msg = f"the attention of {type(module).__name__} needs {', '.join(wanted)}, which is not supported here"
            raise ModelRejected(msg)
        assert self.step is not None
        layer = module.layer_idx
        self.windows[layer] = sliding_window
        keys, values = self.arena.write(layer, key[0], value[0], self.step)
        output = attend(
            query[0],
            keys,
            values,
            self.step,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            window=sliding_window,
            soft_cap=softcap,
            column_bias=column_bias,
        )
        return output[None], None
