"""Modules and package metadata of the Neuron packages, made in memory."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOTS = frozenset({"torch_neuronx", "torch_xla", "neuronxcc", "libneuronxla", "neuronx_distributed"})
VERSIONS = {
    "torch-neuronx": "2.8.0.2.10",
    "neuronx-distributed": "0.15.22404",
    "torch-xla": "2.8.0",
    "libneuronxla": "2.2",
}


class Missing:
    """A class of the real packages which the stand-in lacks: it can be imported, not used."""

    def __init__(self, *_: Any, **__: Any) -> None:
        msg = f"{type(self).__name__} is not in the Neuron stand-in"
        raise NotImplementedError(msg)


def missing(name: str) -> type[Missing]:
    """Answer for every name that was not given; it keeps its name, which `torch.fx.wrap` reads."""
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Missing,), {})


def module(name: str, **names: Any) -> ModuleType:
    """Make a module, and the packages above it, or add names to one."""
    made = sys.modules.get(name)
    if made is None:
        made = ModuleType(name)
        made.__spec__ = ModuleSpec(name, loader=None, is_package=True)
        made.__path__ = []
        made.__getattr__ = missing  # type: ignore[method-assign]
        sys.modules[name] = made
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(module(parent), child, made)
    made.__dict__.update(names)
    return made


class Finder(importlib.metadata.DistributionFinder):
    """Finds every module below the Neuron packages, and their versions."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".", maxsplit=1)[0] in ROOTS else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, made: ModuleType) -> None:
        made.__getattr__ = missing  # type: ignore[method-assign]

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterator[importlib.metadata.Distribution]:
        name = (getattr(context, "name", None) or "").replace("_", "-").lower()
        if name in VERSIONS:
            yield Distribution(name, VERSIONS[name])


class Distribution(importlib.metadata.Distribution):
    """Metadata of a package: its name and version."""

    def __init__(self, name: str, version: str) -> None:
        self._metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename: str) -> str | None:
        return self._metadata if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Path:
        return Path(path)
