"""The attention that transformers' models call: their keywords checked, and the work left to an arena."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from langchain_accel.devices.torch_rows.step import Step
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


@dataclass(frozen=True, slots=True)
class Scores:
    """How the scores of queries and keys are made.

    Attributes:
        scaling: factor on their products.
        window: columns a token sees, itself included; None for all.
        soft_cap: they become `soft_cap * tanh(scores / soft_cap)`; None for no cap.
        column_bias: `[heads, max_len]` float32 added to those of each key column (ALiBi); None for nothing.
    """

    scaling: float
    window: int | None = None
    soft_cap: float | None = None
    column_bias: torch.Tensor | None = None


class Arena(Protocol):
    """The KV cache of every row, and attention to it.

    Attributes:
        max_len: columns of a row.
        dtype: of keys and values.
    """

    max_len: int
    dtype: torch.dtype

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        step: Step,
        scores: Scores,
    ) -> torch.Tensor:
        """Write a step's real tokens at their rows and columns, then attend up to and including their own columns.

        Args:
            layer: layer index.
            query: `[heads, T, key_dim]`, T tokens of the packed step.
            key: `[kv_heads, T, key_dim]`.
            value: `[kv_heads, T, value_dim]`.
            step: which tokens belong to which row and column.
            scores: how they are made.

        Returns:
            `[T, heads, value_dim]`; zero at padding.
        """

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy columns `0...length - 1` of row `source` to row `target`."""

    def clear(self) -> None:
        """Let go of all keys and values."""


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
        self.arena.clear()

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
        scores = Scores(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, column_bias)
        output = self.arena.attend(layer, query[0], key[0], value[0], self.step, scores)
        return output[None], None
