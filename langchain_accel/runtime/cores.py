"""Which processors each rank of a CPU device gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Share(NamedTuple):
    """What one rank may run on.

    Attributes:
        processors: their numbers; none: wherever it likes.
        cores: whole cores among them, of which hyperthreads are parts: as many threads compute without waiting.
    """

    processors: tuple[int, ...] = ()
    cores: int = 0


def shares(ranks: int, root: Path = Path("/")) -> list[Share]:
    """Divide this process's processors among ranks.

    Args:
        ranks: processes to share them among.
        root: where `sys` is.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [Share()] * ranks
    return divided([core(processor, root) for processor in sorted(os.sched_getaffinity(0))], ranks)


def divided(processors: Sequence[tuple[int, str, int]], ranks: int) -> list[Share]:
    """Return disjoint shares of whole cores, neighbours together; empty ones where there is not a core for each.

    Args:
        processors: `(package, core, processor)` each.
        ranks: number of shares; a rank's cores lie in as few packages as can be.
    """
    whole: dict[tuple[int, str], list[int]] = {}
    for package, name, processor in processors:
        whole.setdefault((package, name), []).append(processor)
    cores = [whole[key] for key in sorted(whole, key=lambda key: (key[0], min(whole[key])))]
    size = len(cores) // ranks
    if not size:
        return [Share()] * ranks
    taken = [cores[rank * size : (rank + 1) * size] for rank in range(ranks)]
    return [Share(tuple(sorted(processor for each in share for processor in each)), size) for share in taken]


def core(processor: int, root: Path) -> tuple[int, str, int]:
    """Return `(package, core, processor)`; a processor is its own core where the kernel does not say."""
    topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
    try:
        package = int((topology / "physical_package_id").read_text(encoding="ascii"))
        return package, (topology / "thread_siblings_list").read_text(encoding="ascii").strip(), processor
    except (OSError, ValueError):
        return 0, str(processor), processor
