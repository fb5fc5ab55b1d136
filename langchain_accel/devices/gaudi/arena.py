"""The KV cache of every row, in the layout that a model of optimum-habana wants it in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from langchain_accel.errors import ModelRejected

Past = Sequence[Sequence[torch.Tensor]]
"""A layer's keys and values, for every layer."""


class Arena:
    """`rows x columns` keys and values per layer, made after what one prefill of a model returned.

    Most models keep `[rows, heads, columns, width]`. BLOOM keeps keys as `[rows * heads, width, columns]` and values as
    `[rows * heads, columns, width]`. Here both are seen as `[rows, columns, ...]`.

    Attributes:
        past: what the model is given as `past_key_values`; it writes into these tensors.
    """

    def __init__(self, sample: Past, length: int, rows: int, columns: int) -> None:
        """Allocate zeros.

        Args:
            sample: keys and values that a prefill of one row and `length` columns returned.
            length: its columns; no other axis of the sample may be as long.
            rows: rows of the arena.
            columns: columns of a row.

        Raises:
            ModelRejected: the model keeps something else than a key and a value for every column.
        """
        self._rows, self._columns = rows, columns
        self._axes = [tuple(_axis(tensor, length) for tensor in layer) for layer in sample]
        self.past = tuple(  # tuples: some models take a list for a cache object
            tuple(self._allocate(tensor, axis) for tensor, axis in zip(layer, axes, strict=True))
            for layer, axes in zip(sample, self._axes, strict=True)
        )

    def write(self, rows: torch.Tensor, past: Past, sources: torch.Tensor) -> None:
        """Let rows hold what a prefill computed.

        Args:
            rows: `[B]` row of each lane.
            past: keys and values of the lanes.
            sources: `[columns]` column of the prefill that each column is taken from.
        """
        for layer, fresh, axes in zip(self.past, past, self._axes, strict=True):
            for held, new, axis in zip(layer, fresh, axes, strict=True):
                _by_columns(held, self._rows, axis).index_copy_(
                    0, rows, _by_columns(new, rows.shape[0], axis).index_select(1, sources)
                )

    def shift(self, rows: torch.Tensor, sources: torch.Tensor) -> None:
        """Move columns within their rows.

        Args:
            rows: `[rows, 1]`, each row's own number.
            sources: `[rows, columns]` column of the row that each column is taken from.
        """
        for layer, axes in zip(self.past, self._axes, strict=True):
            for held, axis in zip(layer, axes, strict=True):
                columns = _by_columns(held, self._rows, axis)
                columns.copy_(columns[rows, sources])

    def keep(self, past: Past) -> None:
        """Take over what a decode returned, where the model did not write it in place."""
        for layer, returned in zip(self.past, past, strict=True):
            for held, new in zip(layer, returned, strict=True):
                if new is not held:
                    held.copy_(new)

    def _allocate(self, sample: torch.Tensor, axis: int) -> torch.Tensor:
        shape = list(sample.shape)
        shape[axis] = self._columns
        shape[0] *= self._rows
        return torch.zeros(shape, dtype=sample.dtype, device=sample.device)


def _axis(tensor: Any, length: int) -> int:
    """Return the axis of the columns, counted from the end."""
    shape = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else ()
    if shape[1:].count(length) != 1:
        msg = f"a KV cache of shape {shape or type(tensor).__name__} for {length} columns is not known here"
        raise ModelRejected(msg)
    return shape.index(length, 1) - len(shape)


def _by_columns(tensor: torch.Tensor, rows: int, axis: int) -> torch.Tensor:
    """View a tensor as `[rows, columns, ...]`."""
    return tensor.unflatten(0, (rows, -1)).movedim(axis, 1)
