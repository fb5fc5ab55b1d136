"""The KV cache of every row, attended in torch's operations: a tensor of keys and one of values per layer."""

from __future__ import annotations

import torch

from langchain_accel.devices.torch_rows.attention import Scores
from langchain_accel.devices.torch_rows.dense import attend
from langchain_accel.devices.torch_rows.step import Step

_FEW = 2  # lanes that are copied one by one faster than scattered together


class TorchArena:
    """`rows x max_len` columns of keys and values per layer.

    A layer's tensors are allocated when it first writes, so that their shapes come from the model itself and not
    from a reading of its config. The load-time self-check makes every layer write once.

    Attributes:
        layers: layer index -> keys `[rows, kv_heads, max_len, key_dim]` and values `[..., value_dim]`.
    """

    def __init__(self, rows: int, max_len: int, dtype: torch.dtype) -> None:
        self.rows = rows
        self.max_len = max_len
        self.dtype = dtype
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def bytes(self) -> int:
        """Size of all layers that have written, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for layer in self.layers.values() for tensor in layer)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        step: Step,
        scores: Scores,
    ) -> torch.Tensor:
        """See `Arena.attend`."""
        keys, values = self.write(layer, key, value, step)
        return attend(query, keys, values, step, scores)

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, step: Step
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the real tokens of a step at their rows and columns; padded tokens are left out.

        Args:
            layer: layer index.
            keys: `[kv_heads, T, key_dim]`, T tokens of the packed step.
            values: `[kv_heads, T, value_dim]`.
            step: which tokens belong to which row and column.

        Returns:
            The layer's keys and values of all rows.
        """
        if layer not in self.layers:
            self.layers[layer] = (self._allocate(keys), self._allocate(values))
        arena_keys, arena_values = self.layers[layer]
        if step.width == 1 and len(step.lanes) > _FEW:
            # [T, kv_heads, dim] at (row, :, column): one scatter for all lanes of a decode step.
            arena_keys[step.rows, :, step.columns] = keys.transpose(0, 1).to(self.dtype)
            arena_values[step.rows, :, step.columns] = values.transpose(0, 1).to(self.dtype)
        else:
            for lane in step.lanes:
                arena_keys[lane.row, :, lane.start : lane.end] = keys[:, lane.tokens]
                arena_values[lane.row, :, lane.start : lane.end] = values[:, lane.tokens]
        return arena_keys, arena_values

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Arena.copy`."""
        with torch.inference_mode():  # the tensors were made in it
            for tensors in self.layers.values():
                for tensor in tensors:
                    tensor[target, :, :length] = tensor[source, :, :length]

    def clear(self) -> None:
        """See `Arena.clear`."""
        self.layers.clear()

    def _allocate(self, written: torch.Tensor) -> torch.Tensor:
        heads, _, width = written.shape
        return torch.empty((self.rows, heads, self.max_len, width), dtype=self.dtype, device=written.device)
