"""Does each rank hold its share of a model, or did a layer quietly stay whole?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_accel.errors import ModelRejected

_SLACK = 1.15  # routers, and one key and value head that all ranks keep
_NAMED = 3


def check_share(whole: int, local: Mapping[str, int], size: int, name: str) -> None:
    """Refuse a model of which this rank holds more than its share.

    Args:
        whole: numbers in all weight matrices of the model.
        local: weight matrix -> its numbers on this rank.
        size: all ranks.
        name: of the model, for the message.

    Raises:
        ModelRejected: with the shares and the largest matrices.
    """
    held = sum(local.values())
    if held * size <= whole * _SLACK:
        return
    largest = sorted(local, key=lambda key: -local[key])[:_NAMED]
    msg = (
        f"each of {size} ranks would hold {held / whole:.0%} of the weights of {name} where its share is "
        f"{1 / size:.0%} (largest: {', '.join(largest)}): it was not sharded; set tensor_parallel_size=1"
    )
    raise ModelRejected(msg)


def matrices(model: Any) -> dict[str, int]:
    """Return the numbers in each weight matrix of a model, tied ones once, position tables left out."""
    tables = {
        id(module.weight)
        for module in model.modules()
        if hasattr(module, "num_embeddings") and module.weight is not model.get_input_embeddings().weight
    }
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in tables
    }
