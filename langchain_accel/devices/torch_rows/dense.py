"""Attention of a packed step in torch's operations: each lane attends to the filled part of its own row."""

from __future__ import annotations

import torch
from torch.nn import functional

from langchain_accel.devices.torch_rows.attention import Scores
from langchain_accel.devices.torch_rows.step import Lane, Step


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, scores: Scores) -> torch.Tensor:
    """Attend every lane's tokens to the columns of its row up to and including their own.

    Args:
        query: `[heads, T, key_dim]`, the packed tokens.
        keys: `[rows, kv_heads, max_len, key_dim]`, this layer's arena; the step's own tokens are written already.
        values: `[rows, kv_heads, max_len, value_dim]`.
        step: lanes of the packed step.
        scores: how they are made.

    Returns:
        `[T, heads, value_dim]`; zero at padding.
    """
    kv_heads, window, column_bias = keys.shape[1], scores.window, scores.column_bias
    query = query.unflatten(0, (kv_heads, -1))
    if step.width == 1:
        # One token a lane: the heads of a group are the queries of one attention, [1, kv_heads, groups, key_dim].
        outputs = []
        for lane, token in zip(step.lanes, query.permute(2, 0, 1, 3).split(1), strict=True):
            first = 0 if window is None else max(0, lane.start - window + 1)
            bias = None if column_bias is None else column_bias[:, first : lane.end].unflatten(0, (1, kv_heads, -1))
            row, columns = slice(lane.row, lane.row + 1), slice(first, lane.end)
            outputs.append(_dense(token, keys[row, :, columns], values[row, :, columns], bias, scores))
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
            scores,
        )
        output[lane.tokens] = attended.flatten(0, 1).transpose(0, 1)
    return output


def _dense(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, scores: Scores
) -> torch.Tensor:
    """Attend 4-D `[..., n, key_dim]` queries to all of `[..., columns, key_dim]` keys; `[..., n, value_dim]`."""
    cap = scores.soft_cap
    if cap is None:
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scores.scaling)
    capped = torch.matmul(query, keys.transpose(-1, -2)).float().mul_(scores.scaling / cap).tanh_().mul_(cap)
    weights = torch.softmax(capped if bias is None else capped + bias, dim=-1)
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
