"""Which inputs of a model's products carry much: seen on a short text, before weights are rounded to few bits.

A weight's error counts by the mean square of what it is multiplied with (as in AWQ, Lin et al. 2023, arXiv:2306.00978).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from langchain_accel.devices.base import IntArray, Logits
from langchain_accel.devices.native.packing import products

_FLOOR = 0.05  # of the mean: what a short text does not show is not nothing
_MOST_TOKENS = 512

TEXT = """\
Question: What does the warranty of the pump cover, and for how long? Answer: The warranty covers the motor and the \
housing for 24 months from delivery; seals and filters are wear parts and are excluded (see section 7.2).

In 1911 the first lamps of the harbour were lit by gas. Twelve years later, electricity had replaced it almost \
everywhere, and the old keepers, who had walked the quay each evening, were given work in the new power station.

def mean(values: list[float]) -> float:
    # The arithmetic mean.
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)

{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3, "unit": "celsius"}}

Dear Ms Okafor, thank you for your letter of 14 March. We are sorry that the parcel arrived late. Please find enclosed \
a refund of EUR 18.50; the rest of your order will follow next week. Kind regards, the service team.

1. Boil the water. 2. Add 200 g of rice and a pinch of salt. 3. Cover, turn the heat down, and wait for 12 minutes.

La biblioteca abre de lunes a viernes de 9:00 a 18:30. Die Anmeldung ist kostenlos. Les livres sont pretes pour trois \
semaines. Why does ice float? Because water expands when it freezes, so that ice is less dense than the water around.
"""
"""Prose, questions, code, JSON, lists and other languages, in few words."""


def tokens_of(folder: Path, vocabulary: int) -> IntArray:
    """Return the text as `[n]` token ids of a folder's tokenizer; random ones where it has none that loads."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception:  # noqa: BLE001  whatever is wrong with it, the runtime will say; importance is no reason to fail
        known = []
    else:
        known = [token for token in tokenizer(TEXT)["input_ids"] if token < vocabulary]  # which may lack added ones
    return np.array(known[:_MOST_TOKENS] or np.random.default_rng(0).integers(0, vocabulary, _MOST_TOKENS))


def importance(model: Any, tokens: IntArray) -> dict[str, Logits]:
    """Return the mean square of each input of each product, `[inputs]` float32 by the product's name.

    Args:
        model: as transformers loaded it.
        tokens: `[n]` ids to see it on; as many as it has positions for.
    """
    found: dict[str, Logits] = {}

    def see(name: str, _module: Any, arguments: tuple[torch.Tensor]) -> None:
        squares = arguments[0].float().pow(2).flatten(0, -2).mean(0)
        mean = squares.mean()
        if 0 < mean < torch.inf:  # or this text shows nothing, and all inputs count alike
            found[name] = (squares + _FLOOR * mean).numpy()

    hooks = [layers[0].register_forward_pre_hook(partial(see, name)) for name, layers in products(model)]
    try:
        with torch.inference_mode():
            model(torch.from_numpy(tokens[: model.config.max_position_embeddings])[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found
