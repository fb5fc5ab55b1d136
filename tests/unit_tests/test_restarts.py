"""How often a lost device is loaded again."""

from __future__ import annotations

import pytest

from langchain_accel.errors import DeviceLost
from langchain_accel.runtime.restarts import MOST_LOSSES, REST_SECONDS, Restarts


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def restarts(clock: Clock) -> Restarts:
    return Restarts(clock)


def lose(restarts: Restarts, times: int = 1, *, plan: str = "plan", served: bool = False) -> None:
    for number in range(times):
        restarts.lost(plan, DeviceLost(f"loss {number}"), served=served)


def test_a_few_losses_in_a_row_are_loaded_again(restarts: Restarts) -> None:
    """And then no more, with the reason of the last. Mutants to catch: `>`; the reason of the first loss."""
    lose(restarts, MOST_LOSSES - 1)
    restarts.check("plan")
    lose(restarts)
    with pytest.raises(DeviceLost, match=r"lost 3 times in a row .* for the next 60 seconds: .*: loss 0"):
        restarts.check("plan")
    restarts.check("another plan")


def test_after_a_rest_one_more_may_try(restarts: Restarts, clock: Clock) -> None:
    """Mutants to catch: refused for ever; the count begun anew by the rest."""
    lose(restarts, MOST_LOSSES)
    clock.now += REST_SECONDS
    restarts.check("plan")
    lose(restarts)
    with pytest.raises(DeviceLost, match="lost 4 times"):
        restarts.check("plan")


def test_an_answer_between_two_losses_begins_a_new_row(restarts: Restarts) -> None:
    """Mutant to catch: `served` not looked at."""
    lose(restarts, 10, served=True)
    restarts.check("plan")
    lose(restarts, MOST_LOSSES - 2)
    restarts.check("plan")
    lose(restarts)
    with pytest.raises(DeviceLost):
        restarts.check("plan")


def test_a_device_that_was_closed_in_peace_is_forgiven(restarts: Restarts) -> None:
    lose(restarts, MOST_LOSSES)
    restarts.forgive("plan")
    restarts.forgive("plan")
    restarts.check("plan")
