"""The real optimum-neuron on a stand-in of the Neuron packages; nothing here needs a Neuron device."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

# The stand-in must be there before optimum-neuron is imported, which test modules do while they are collected.
if find_spec("optimum") and find_spec("optimum.neuron") and not find_spec("torch_neuronx"):
    import torch

    from tests.standins import neuron

    torch.set_num_threads(1)
    neuron.install("inf2.24xlarge", Path(tempfile.mkdtemp(prefix="neuron-compile-cache-")))


@pytest.fixture
def cache_dir(tmp_path: Path) -> str:
    """An empty cache of exported models."""
    return str(tmp_path / "exported")


@pytest.fixture(autouse=True)
def _not_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whoever forgets to name a cache does not write into the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "user-cache"))
