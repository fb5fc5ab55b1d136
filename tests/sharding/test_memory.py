"""No rank ever holds the whole model in memory of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.sharding_memory import make, measure

SHARE = 0.6
"""Of the whole weights, for one of two ranks that have loaded: half, and what is kept whole."""
VOCABULARY = 4 * 32000 * 512
"""Bytes of the largest matrix: what may be there whole, while several threads read and convert, until it is cut."""


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed, which shards Llama, is not installed")
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's smaps_rollup")
def test_peak_while_loading_and_after(tmp_path: Path) -> None:
    """A bfloat16 checkpoint served in float32, beyond what a process with next to no model takes.

    Mutant: a model that is loaded whole and cut afterwards.
    """
    weights = 4 * make(tmp_path / "model", 10, 512)
    make(tmp_path / "nothing", 1, 64)
    floor, _ = measure(tmp_path / "nothing", "float32", 2)
    peak, after = measure(tmp_path / "model", "float32", 2)
    assert peak - floor <= weights / 2 + VOCABULARY
    assert after - floor <= SHARE * weights
