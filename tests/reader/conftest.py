"""A model as it is before the first step of training."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def fresh() -> tuple:
    """Model and tokenizer; the tokenizer has seen fewer texts than a run shows it."""
    torch = pytest.importorskip("torch")
    from tools.reader import train

    torch.manual_seed(0)
    return train.start(0, 2000)
