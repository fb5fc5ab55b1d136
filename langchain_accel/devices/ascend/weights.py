"""Do a checkpoint's weights fit a model? mindformers logs what does not, and goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from langchain_accel.errors import ModelRejected


def check_names(folder: Path, parameters: Collection[str], taken: Mapping[str, str], *, tied: bool) -> None:
    """Refuse a checkpoint that lacks weights of the model, or has weights that the model has no place for.

    Args:
        folder: the checkpoint; only named in the error.
        parameters: names of the model's parameters.
        taken: name of each weight of the checkpoint, as mindformers calls it, and of the parameter that it belongs to.
        tied: embedding and output head share their weights; the head's own may be there or not.

    Raises:
        ModelRejected: names them.
    """
    head = ("lm_head.", "output_layer.")
    missing = {name for name in set(parameters).difference(taken.values()) if not (tied and name.startswith(head))}
    unused = {name for name, parameter in taken.items() if parameter not in parameters}
    unused = {name for name in unused if not name.endswith(".inv_freq") and not (tied and name.startswith(head))}
    for names, what in (
        (missing, "lacks weights that its config.json asks for: {}; fetch all its files"),
        (unused, "has weights that mindformers' model has no place for: {}; it is not served on Ascend"),
    ):
        if names:
            msg = f"{folder} {what.format(', '.join(sorted(names)))}"
            raise ModelRejected(msg)
