"""How far a device may be off the model that it serves."""

from __future__ import annotations

import numpy as np
import pytest

from langchain_accel.devices import selfcheck
from langchain_accel.errors import ModelRejected

EXACT = np.random.default_rng(0).standard_normal((12, 50)).astype(np.float32)


def off(tokens: int) -> np.ndarray:
    """Logits of which some tokens are those of others."""
    found = EXACT.copy()
    found[:tokens] = EXACT[-tokens:]
    return found


def test_two_tokens_of_rounded_weights_may_look_elsewhere() -> None:
    """Three may not, which a wrong position of single tokens makes.

    Mutants seen to fail: one excused; three excused.
    """
    for tolerance in (selfcheck.INT8, selfcheck.INT4):
        selfcheck.compare("it", off(2), EXACT, tolerance)
        with pytest.raises(ModelRejected, match=r"worst 1\.\d+, 2 tokens aside"):
            selfcheck.compare("it", off(3), EXACT, tolerance)


@pytest.mark.parametrize("tolerance", [selfcheck.FLOAT32, selfcheck.BFLOAT16, selfcheck.ROUNDED])
def test_no_token_of_the_same_weights_may(tolerance: selfcheck.Tolerance) -> None:
    selfcheck.compare("it", EXACT, EXACT, tolerance)
    with pytest.raises(ModelRejected, match="refused rather than answered wrongly"):
        selfcheck.compare("it", off(1), EXACT, tolerance)


def test_what_is_no_number_is_refused() -> None:
    """Mutant seen to fail: a comparison that is false for NaN."""
    for tolerance in (selfcheck.FLOAT32, selfcheck.INT4):
        with pytest.raises(ModelRejected):
            selfcheck.compare("it", np.full_like(EXACT, np.nan), EXACT, tolerance)
