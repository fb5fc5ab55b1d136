"""How processors are divided among ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_accel.runtime.cores import Share, core, divided, shares


def machine(packages: int, cores: int, threads: int) -> list[tuple[int, str, int]]:
    """Processors numbered as Linux does: all first threads, then all second ones."""
    return [
        (one // cores, f"core {one}", thread * packages * cores + one)
        for thread in range(threads)
        for one in range(packages * cores)
    ]


def test_whole_cores_of_one_package_go_to_one_rank() -> None:
    """Mutants to catch: processors divided in order of their numbers; packages mixed."""
    assert divided(machine(2, 2, 2), 2) == [Share((0, 1, 4, 5), 2), Share((2, 3, 6, 7), 2)]
    interleaved = [(processor % 2, f"core {processor}", processor) for processor in range(8)]
    assert divided(interleaved, 2) == [Share((0, 2, 4, 6), 4), Share((1, 3, 5, 7), 4)]


def test_too_few_cores_pin_nobody() -> None:
    """Two threads of one core are no two cores. Mutant to catch: hyperthreads counted as cores."""
    assert divided(machine(1, 1, 2), 2) == [Share(), Share()]
    assert divided([], 1) == [Share()]


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 2), st.integers(1, 8))
def test_shares_are_disjoint_equal_and_there(packages: int, cores: int, threads: int, ranks: int) -> None:
    processors = machine(packages, cores, threads)
    given_out = divided(processors, ranks)
    assert len(given_out) == ranks
    assert {share.cores for share in given_out} == {packages * cores // ranks}
    all_of_them = [processor for share in given_out for processor in share.processors]
    assert len(set(all_of_them)) == len(all_of_them) == packages * cores // ranks * ranks * threads
    assert set(all_of_them) <= {processor for _, _, processor in processors}


def test_what_the_kernel_says_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "sys/devices/system/cpu/cpu3/topology"
    folder.mkdir(parents=True)
    (folder / "physical_package_id").write_text("1\n")
    (folder / "thread_siblings_list").write_text("3,7\n")
    assert core(3, tmp_path) == (1, "3,7", 3)
    assert core(4, tmp_path) == (0, "4", 4)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no process")
def test_only_processors_of_this_process_are_given_out() -> None:
    """Mutant to catch: all processors of the machine."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert shares(1) == [Share((min(before),), 1)]
        assert shares(2) == [Share(), Share()]
    finally:
        os.sched_setaffinity(0, before)
