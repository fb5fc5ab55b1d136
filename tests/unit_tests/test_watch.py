"""When a rank counts as gone, without any waiting: the judgement of what is seen."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from langchain_accel.runtime.watch import LOOK_SECONDS, SILENT_SECONDS, Pulse, Sign

LOOKS = int(SILENT_SECONDS / LOOK_SECONDS) + 1


def judged(signs: Iterable[Sign], seconds: float = LOOK_SECONDS) -> list[bool]:
    pulse = Pulse()
    return [pulse.silent(sign, seconds) for sign in signs]


@pytest.mark.parametrize("state", ["S", "T", "t", ""])
def test_a_rank_that_shows_nothing_is_silent_in_time(state: str) -> None:
    """Within 5 seconds of its last sign of life, with a look before and one after.

    Mutants to catch: `T` taken for alive; the time of a look not added.
    """
    looks = judged([Sign(5, 100, state)] * (LOOKS + 1))
    assert looks == [False] * (LOOKS - 1) + [True, True]
    assert (LOOKS + 1) * LOOK_SECONDS <= 5


@pytest.mark.parametrize(
    "signs",
    [
        [Sign(number) for number in range(1, 50)],  # asleep in a step, its heart beats
        [Sign(5, number, "S") for number in range(50)],  # computing without letting Python go
        [Sign(5, 100, "R")] * 50,  # waiting for a processor
        [Sign(5, 100, "D")] * 50,  # waiting for a disk
        [Sign(number // 6, 100, "S") for number in range(50)],  # a heart that stumbles
    ],
)
def test_a_rank_that_shows_any_sign_of_life_is_alive(signs: list[Sign]) -> None:
    """Mutants to catch: heartbeats alone; processor time alone; D and R not looked at."""
    assert not any(judged(signs))


def test_time_that_this_process_slept_through_does_not_count() -> None:
    """A laptop that was closed, an engine that was stopped: the first look after is not held against the ranks.

    Mutant to catch: the time since the last look as it is.
    """
    assert judged([Sign(5)] * 3, seconds=3600.0) == [False, False, False]


def test_a_rank_is_given_the_patience_that_its_placement_asks_for() -> None:
    """A library that waits for its peers lets nothing run. Mutant seen to fail: everybody gets the same."""
    pulse = Pulse(patience=20.0)
    looks = [pulse.silent(Sign(5, 100, "S"), LOOK_SECONDS) for _ in range(50)]
    assert looks.index(True) == int(20.0 / LOOK_SECONDS)
