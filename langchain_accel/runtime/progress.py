"""A progress bar for loading and warm-up."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_accel.devices.base import Progress


def bar() -> Progress:
    """Return a `Progress` that draws one bar per stage on standard error, where that is a terminal."""
    from tqdm.auto import tqdm

    bars: dict[str, Any] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = tqdm(total=total, desc=stage, leave=False, disable=not sys.stderr.isatty())
        bars[stage].total = total
        bars[stage].update(done - bars[stage].n)
        if done >= total:
            bars.pop(stage).close()

    return show
