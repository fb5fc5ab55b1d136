"""What the self-check of a torch model holds the row step against, and what logits cannot show."""

from __future__ import annotations

from typing import Any

import torch

from langchain_accel.devices import selfcheck
from langchain_accel.devices.base import IntArray, Logits
from langchain_accel.devices.torch_rows.attention import RowAttention
from langchain_accel.errors import ModelRejected


def tolerance(dtype: torch.dtype, *, int8: bool) -> selfcheck.Tolerance:
    """Return how far the row step's logits may be off those of the model, both in a dtype, or both rounded."""
    if dtype is torch.bfloat16:
        return selfcheck.ROUNDED_BFLOAT16 if int8 else selfcheck.BFLOAT16
    return selfcheck.ROUNDED if int8 else selfcheck.FLOAT32


def plain_logits(model: Any, prompt: IntArray) -> Logits:
    """Return `[n, vocab_size]` logits of the untouched model, with its own attention and cache.

    Raises:
        ModelRejected: the model fails by itself.
    """
    try:
        with torch.inference_mode():
            tokens = torch.from_numpy(prompt)[None].to(next(model.parameters()).device)
            logits: Logits = model(input_ids=tokens).logits[0].float().cpu().numpy()
    except Exception as error:
        msg = f"{type(model).__name__} fails on {len(prompt)} tokens by itself: {type(error).__name__}: {error}"
        raise ModelRejected(msg) from error
    return logits


def check_layers(model: Any, attention: RowAttention, max_len: int) -> None:
    """Refuse a model with layers that attend past the arena, or with windows that its attention is not told of.

    A short prompt cannot show a window of thousands of columns, so the windows are read off the calls.
    """
    name, config = type(model).__name__, model.config
    layers = config.num_hidden_layers
    missing = sorted(set(range(layers)) - set(attention.windows))
    if missing:
        msg = f"{name} attends in layers {missing} of {layers} by other means than transformers' attention interface"
        raise ModelRejected(msg)
    window = getattr(config, "sliding_window", None)
    if window is None or window >= max_len:
        return
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    for layer, (kind, seen) in enumerate(zip(types, (attention.windows[i] for i in range(layers)), strict=True)):
        wanted = window if kind == "sliding_attention" else None
        if seen != wanted:
            msg = (
                f"layer {layer} of {name} should attend to {wanted or 'all'} columns but asks for {seen or 'all'}; "
                f"set max_len <= {window} to serve this model"
            )
            raise ModelRejected(msg)
