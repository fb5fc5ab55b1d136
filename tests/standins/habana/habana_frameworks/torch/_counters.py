"""What the stand-in counts."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

FILE = os.environ.get("HABANA_STANDIN_COUNTERS", "")
"""File that every read by the host leaves the counts in, for whoever watches from another process."""


@dataclass
class Counters:
    """Counts since the import, or since `reset`.

    Attributes:
        captures: graphs recorded.
        replays: recorded graphs run again.
        bypasses: forwards of a wrapped module that were asked not to be graphs, or were one graph too many.
        compilations: signatures that `torch.compile` saw.
        host_reads: copies of device tensors to the host, single values included.
        mixed: operations that were given tensors of the host beside those of the device.
        fused: calls of fused kernels.
        collectives: collectives by name, recorded ones once.
        recipes: sequences of operations that ran outside graphs, by content.
        runs: how often any recipe ran.
    """

    captures: int = 0
    replays: int = 0
    bypasses: int = 0
    compilations: int = 0
    host_reads: int = 0
    mixed: int = 0
    fused: int = 0
    collectives: Counter[str] = field(default_factory=Counter)
    recipes: set[Hashable] = field(default_factory=set)
    runs: int = 0

    def reset(self) -> None:
        """Count from zero; recipes that were seen stay compiled."""
        recipes = self.recipes
        self.__init__()  # type: ignore[misc]
        self.recipes = recipes

    def publish(self) -> None:
        """Write the counts to the file, whole for whoever reads it meanwhile; several ranks write one each."""
        if FILE:
            counts = {**vars(self), "recipes": len(self.recipes)}
            scratch = Path(f"{FILE}{os.environ.get('RANK', '')}.part")
            scratch.write_text(json.dumps(counts))
            scratch.replace(scratch.with_suffix(""))


COUNTERS = Counters()
