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
    kv_heads = keys.shape[1]
    query = query.unflatten(0, (kv_heads, -1))
    if step.width == 1:
        # One token a lane: the heads of a group are the queries of one attention, [1, kv_heads, groups, key_dim].
        outputs = []
        for lane, token in zip(step.lanes, query.permute(2, 0, 1, 3).split(1), strict=True):
            first = 0 if window is None else max(0, lane.start - window + 1)
            bias = None if column_bias is None else column_bias[:, first : lane.end].unflatten(0, (1, kv_heads, -1))
            row, columns = slice(lane.row, lane.row + 1), slice(first, lane.end)
            outputs.append(_dense(token, keys[row, :, columns], values[row, :, columns], bias, scaling, soft_cap))
        return torch.cat(outputs).flatten(1, 2)
    allocate = query.new_zeros if step.padded else query.new_empty
    output = allocate((query.shape[2], kv_heads * query.shape[1], values.shape[-1]))
    for lane in step.lanes:
        # A batch of kv heads, whose keys serve the group's heads with stride zero: [kv_heads, groups, n, key_dim].
        first = 0 if window is None else max(0, lane.start - window + 1)
        spread = (kv_heads, query.shape[1], lane.end - first, -1)
        attended = _dense(
            query[:, :, lane.tokens],
            keys[lane.row, :, None, first : lane.end].expand(spread),
            values[lane.row, :, None, first : lane.end].expand(spread),
            _bias(step, lane, first, window, column_bias, kv_heads),
            scaling,
            soft_cap,
        )
        output[lane.tokens] = attended.flatten(0, 1).transpose(0, 1)
    return output


def _dense(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    scaling: float,
    soft_cap: float | None,
) -> torch.Tensor:
    """Attend 4-D `[..., n, key_dim]` queries to all of `[..., columns, key_dim]` keys; `[..., n, value_dim]`."""
    if soft_cap is None:
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scaling)
    scores = torch.matmul(query, keys.transpose(-1, -2)).float().mul_(scaling / soft_cap).tanh_().mul_(soft_cap)
    weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    return torch.matmul(weights.to(values.dtype), values)


def _bias(
    step: Step, lane: Lane, first: int, window: int | None, column_bias: torch.Tensor | None, kv_heads: int
) -> torch.Tensor:
    """What is added to a lane's scores: minus infinity where a query may not look, and the bias of each column.

    Returns:
        float32 `[n, columns]`, with a column bias `[kv_heads, groups, n, columns]`.
    """
    key = (lane.offset, window, column_bias is not None)
    if key not in step.biases:
        place = step.tokens.device
        queries = torch.arange(lane.start, lane.end, device=place)[:, None]
        columns = torch.arange(first, lane.end, device=place)[None, :]
        hidden = columns > queries
        if window is not None:
            hidden |= columns <= queries - window
        bias = torch.zeros(hidden.shape, device=place).masked_fill_(hidden, -torch.inf)
        if column_bias is not None:
            bias = bias + column_bias[:, first : lane.end].unflatten(0, (kv_heads, -1))[:, :, None]
        step.biases[key] = bias
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
