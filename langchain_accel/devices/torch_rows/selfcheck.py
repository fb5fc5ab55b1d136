"""Before a model serves: does the row step compute the logits that plain transformers computes?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from langchain_accel.devices.base import Device, IntArray, Logits
from langchain_accel.devices.torch_rows.attention import RowAttention
from langchain_accel.errors import ModelRejected

_TOKENS = 12
_CHUNKS = (0, 5, 9)  # a prefill, a resumed prefill, then single tokens
_PADDING = 3

# Relative error of centred logits, per dtype: median over tokens, and worst token. A mixture of experts may route
# a single token differently for a rounding, hence the two numbers; a wrong mask or position is far above both.
_TOLERANCE = {torch.float32: (1e-4, 1e-2), torch.bfloat16: (5e-2, 5e-1)}


def probe(vocab_size: int, max_len: int) -> IntArray:
    """Return the check's prompt, `[n]` token ids: random, but the same at every load."""
    return np.random.default_rng(0).integers(0, vocab_size, min(_TOKENS, max_len))


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


def check(model: Any, attention: RowAttention, device: Device, prompt: IntArray, expected: Logits) -> None:
    """Run the prompt through the device in pieces and compare; every layer of the arena is allocated by it.

    Args:
        model: the model inside `device`, for its config and its name.
        attention: the attention inside `device`.
        device: what will serve.
        prompt: `[n]` token ids.
        expected: `[n, vocab_size]` logits of the untouched model.

    Raises:
        ModelRejected: a layer does not attend through the arena, or the logits differ.
    """
    name = type(model).__name__
    try:
        actual = _in_pieces(device, prompt)
    except ModelRejected:
        raise
    except Exception as error:
        msg = f"{name} cannot run as row steps: {type(error).__name__}: {error}"
        raise ModelRejected(msg) from error
    _check_layers(model, attention, device.spec.max_len)
    expected = expected - expected.mean(axis=-1, keepdims=True)
    actual = actual - actual.mean(axis=-1, keepdims=True)
    errors = np.linalg.norm(actual - expected, axis=-1) / (np.linalg.norm(expected, axis=-1) + 1e-9)
    median, worst = _TOLERANCE[attention.arena.dtype]
    if not (np.median(errors) <= median and errors.max() <= worst):
        msg = (
            f"{name} computes other logits as row steps than by itself (relative error {np.median(errors):.2g}, worst "
            f"{errors.max():.2g}; {median:.2g} and {worst:.2g} are allowed): it is refused rather than answered wrongly"
        )
        raise ModelRejected(msg)


def _in_pieces(device: Device, prompt: IntArray) -> Logits:
    """Run the prompt on the arena's last row: prefill, resumed prefill, single tokens, all but these padded."""
    row = np.array([device.spec.rows - 1])
    cuts = [cut for cut in _CHUNKS if cut < len(prompt)] + list(range(_CHUNKS[-1] + 1, len(prompt) + 1))
    pieces = []
    for start, end in zip(cuts, [*cuts[1:], len(prompt)], strict=True):
        length = end - start
        if length == 0:
            continue
        tokens = np.pad(prompt[start:end], (0, _PADDING if length > 1 else 0))[None]
        logits = device.verify(tokens, np.array([length]), np.array([start]), row)
        pieces.append(logits[0, :length].copy())
    return np.concatenate(pieces)


def _check_layers(model: Any, attention: RowAttention, max_len: int) -> None:
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
