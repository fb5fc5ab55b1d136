"""The three things that run on the device, each a module of its own: what is captured as graphs is their forward.

The arena is no argument of theirs: a graph copies its arguments in, and finds everything else by its address.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from langchain_accel.devices.gaudi.arena import Arena, Past


class Prefill(nn.Module):
    """Prompts to their rows. Prompts stand at the right end of a lane, so that all their last tokens share a column."""

    def __init__(self, model: Any, keywords: dict[str, Any], arena: Arena | None = None) -> None:
        super().__init__()
        self.model, self.keywords, self.arena = model, keywords, arena

    def forward(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        sources: torch.Tensor,
    ) -> torch.Tensor:
        """Return `[B, vocab_size]` float32 logits of `[B, L]` tokens; see `Arena.write` for `rows` and `sources`."""
        logits, past = self.run(tokens, mask, positions)
        assert self.arena is not None
        self.arena.write(rows, past, sources)
        return logits

    def run(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, Past]:
        """Return the logits, and keys and values of all columns."""
        end = torch.full((), tokens.shape[1], dtype=torch.long, device=tokens.device)
        out = self.model(**given(self.keywords, tokens, mask, positions, end))
        return out.logits[:, -1].float(), out.past_key_values


class Decode(nn.Module):
    """One token for every row, all written to the same column."""

    def __init__(self, model: Any, keywords: dict[str, Any], arena: Arena) -> None:
        super().__init__()
        self.model, self.keywords, self.arena = model, keywords, arena

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, end: torch.Tensor
    ) -> torch.Tensor:
        """Return `[rows, vocab_size]` float32 logits.

        Args:
            tokens: `[rows, 1]` token ids.
            mask: `[rows, columns]`, 1 at the columns that a row attends, the one that is written among them.
            positions: `[rows, 1]` position of the token in its row.
            end: 0-d, one past the column that is written.
        """
        out = self.model(**given(self.keywords, tokens, mask, positions, end), past_key_values=self.arena.past)
        self.arena.keep(out.past_key_values)
        return out.logits[:, -1].float()


class Shift(nn.Module):
    """Moves what rows hold to other columns; see `Arena.shift`."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.arena = arena

    def forward(self, rows: torch.Tensor, sources: torch.Tensor) -> None:
        """Shift all rows."""
        self.arena.shift(rows, sources)


def keywords(model: Any, *, lazy: bool, flash_attention: bool, softmax_bf16: bool) -> dict[str, Any]:
    """Return the settings of a forward of optimum-habana that the model's class knows."""
    settings = {
        "trim_logits": True,
        "use_flash_attention": flash_attention,
        "attn_softmax_bf16": softmax_bf16,
        "lazy_mode": lazy,
        "position_ids": None,
    }
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in settings.items() if name in known}


def given(
    settings: dict[str, Any], tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, end: torch.Tensor
) -> dict[str, Any]:
    """Return the keywords of one forward; models without `position_ids` get their positions from the mask."""
    call = {**settings, "input_ids": tokens, "attention_mask": mask, "token_idx": end, "use_cache": True}
    if "position_ids" in settings:
        call["position_ids"] = positions
    return call
