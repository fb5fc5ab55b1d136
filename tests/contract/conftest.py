"""The oracle of the reference device, shared by all contract tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.plain_llama import PlainLlama


@pytest.fixture(scope="session")
def plain(tiny: Path) -> PlainLlama:
    """The oracle of the tiny checkpoint; it remembers what it was asked."""
    return PlainLlama(tiny)
