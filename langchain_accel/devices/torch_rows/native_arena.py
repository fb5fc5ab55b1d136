"""The KV cache of every row, attended by langchain-accel-kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from langchain_accel.devices.torch_rows.attention import Scores
from langchain_accel.devices.torch_rows.step import Step

if TYPE_CHECKING:
    import langchain_accel_kernels as kernels


class NativeArena:
    """`rows x max_len` columns of keys and values per layer, in the kernels' layout.

    Heads of any width, and values of another width than keys, are held with zeros up to the next width that the
    kernels take.

    Args:
        rows: of the arena.
        max_len: columns of a row, at least; rounded up to whole blocks of the kernels.
        parts: whose threads attend.
        dtype: of keys and values, float32 or bfloat16.

    Attributes:
        layers: layer index -> keys and values. A layer's are made when it first writes, as those of `TorchArena`.
    """

    def __init__(self, rows: int, max_len: int, *, parts: kernels.Parts, dtype: torch.dtype) -> None:
        from langchain_accel_kernels import COLUMNS

        self.rows = rows
        self.max_len = -(-max_len // COLUMNS) * COLUMNS
        self.dtype = dtype
        self.layers: dict[int, kernels.Cache] = {}
        self._parts = parts

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, step: Step, scores: Scores
    ) -> torch.Tensor:
        """See `Arena.attend`."""
        # In numpy, whose slices cost a fraction of torch's: [T, heads, width].
        queries, keys, values = (part.float().numpy().swapaxes(0, 1) for part in (query, key, value))
        (tokens, heads, key_dim), (_, kv_heads, value_dim) = queries.shape, values.shape
        if layer not in self.layers:
            self.layers[layer] = self._allocate(kv_heads, max(key_dim, value_dim))
        cache = self.layers[layer]
        width = cache.values.shape[-1]
        allocate = np.empty if key_dim == value_dim == width else np.zeros
        packed = allocate((tokens, heads + 2 * kv_heads, width), np.float32)
        packed[:, :heads, :key_dim] = queries
        packed[:, heads:-kv_heads, :key_dim] = keys
        packed[:, -kv_heads:, :value_dim] = values
        output = self._parts.attend(
            cache,
            step.table,
            packed,
            scaling=scores.scaling,
            window=scores.window or 0,
            soft_cap=scores.soft_cap or 0.0,
            column_bias=None if scores.column_bias is None else scores.column_bias.numpy(),
        )
        return torch.from_numpy(output[..., :value_dim]).to(query.dtype)

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Arena.copy`."""
        for cache in self.layers.values():
            cache.copy_row(source, target, length)

    def clear(self) -> None:
        """See `Arena.clear`."""
        self.layers.clear()

    def _allocate(self, kv_heads: int, width: int) -> kernels.Cache:
        import langchain_accel_kernels as kernels

        dtype = str(self.dtype).removeprefix("torch.")
        return kernels.Cache.empty(self.rows, kv_heads, self.max_len, width, dtype)
