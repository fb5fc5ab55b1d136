"""An exported model on disk: what it was compiled for, and how that differs from what is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from langchain_accel.errors import ModelRejected, PlanRejected

NEURON_CONFIG = "neuron_config.json"
GRAPHS = "model.pt"


@dataclass(frozen=True, slots=True)
class Compiled:
    """What graphs are compiled for. Each field is the entry of `neuron_config.json` of that name."""

    batch_size: int
    sequence_length: int
    max_context_length: int
    tp_degree: int
    torch_dtype: str
    target: str
    optimum_neuron_version: str
    neuronxcc_version: str
    on_device_sampling: bool = False
    continuous_batching: bool = False
    output_logits: bool = False
    speculation_length: int = 0


_WORDS = {
    "batch_size": "rows",
    "sequence_length": "max_len",
    "max_context_length": "longest prompt",
    "tp_degree": "tensor_parallel_size",
    "torch_dtype": "dtype",
    "target": "kind of core",
    "optimum_neuron_version": "optimum-neuron",
    "neuronxcc_version": "neuronx-cc",
    "on_device_sampling": "sampling on the device",
    "continuous_batching": "continuous batching",
    "output_logits": "logits beside tokens",
    "speculation_length": "speculated tokens",
}


def is_artefact(folder: Path) -> bool:
    """Whether a model folder holds an exported model."""
    return (folder / NEURON_CONFIG).is_file()


def differences(there: Mapping[str, Any], asked: Compiled) -> list[str]:
    """Say what an exported model was compiled for that was not asked, and the other way round."""
    wanted = asdict(asked)
    return [
        f"{_WORDS[name]} is {there.get(name)!r} there and {value!r} here"
        for name, value in wanted.items()
        if there.get(name) != value
    ]


def read(folder: Path) -> dict[str, Any]:
    """Read what an exported model was compiled for.

    Raises:
        ModelRejected: a file of it is missing or broken.
    """
    try:
        content = json.loads((folder / NEURON_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{folder / NEURON_CONFIG} cannot be read: {error}; export the model again"
        raise ModelRejected(msg) from error
    if not (folder / GRAPHS).is_file():
        msg = f"{folder} has {NEURON_CONFIG} and no {GRAPHS}, so its graphs are missing; export the model again"
        raise ModelRejected(msg)
    if not isinstance(content, dict):
        msg = f"{folder / NEURON_CONFIG} must hold a JSON object; export the model again"
        raise ModelRejected(msg)
    return content


def check(folder: Path, asked: Compiled) -> None:
    """Refuse an exported model that was made by other versions or for other shapes.

    Raises:
        ModelRejected: a file of it is missing or broken.
        PlanRejected: says what differs, and the command that exports it anew.
    """
    if found := differences(read(folder), asked):
        msg = (
            f"{folder} was exported for something else: {'; '.join(found)}. Ask for what is there, or export the "
            f"original model again: {command('ORIGINAL_MODEL', asked)}"
        )
        raise PlanRejected(msg)


def command(model: str, asked: Compiled) -> str:
    """Return the command line that exports a model for these shapes."""
    return (
        f"python -m langchain_accel.devices.inferentia.export {model} OUT --rows {asked.batch_size} --max-len "
        f"{asked.sequence_length} --tensor-parallel-size {asked.tp_degree} --dtype {asked.torch_dtype}"
    )
