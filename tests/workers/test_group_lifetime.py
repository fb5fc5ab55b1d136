"""Ranks live as long as their engine's process wants them, wherever it comes from, and no longer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.workers.helpers import GUARD, dead, decode, eventually, gone, known, open_group, pids, prefill

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parents[2]

PROLOGUE = """
import os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from tests.workers.helpers import *
tiny, folder = Path({tiny!r}), {folder!r}
def leave(name, pid):
    Path(folder, "partial").write_text(str(pid))
    Path(folder, "partial").rename(Path(folder, name))
"""


@contextmanager
def program(tiny: Path, folder: Path, code: str, *, stdin: bool = False, **popen: Any) -> Iterator[Any]:
    """Run code in a process of its own; whatever happens, neither it nor its ranks outlive the test."""
    code = PROLOGUE.format(tiny=str(tiny), folder=str(folder)) + textwrap.dedent(code)
    process = subprocess.Popen(
        [sys.executable, "-"] if stdin else [sys.executable, "-c", code],
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        **popen,
    )
    if stdin:
        process.stdin.write(code)  # type: ignore[union-attr]
        process.stdin.close()  # type: ignore[union-attr]
        process.stdin = None
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        for file in folder.glob("*.json"):
            pid = json.loads(file.read_text(encoding="utf-8"))["pid"]
            if not dead(pid):
                os.kill(pid, signal.SIGKILL)


def ended(folder: Path, size: int = 2) -> bool:
    return all(dead(rank["pid"]) for rank in known(folder, size))


def finished(process: Any) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=GUARD)
    return process.returncode, out, err


MOMENTS: dict[str, str] = {
    "load": "group = open_group(tiny, folder=folder, trouble='sleep', at='load', seconds=3600.0, ranks=(0, 1))",
    "prefill": """
        group = open_group(tiny, folder=folder, trouble='sleep', at='prefill', seconds=3600.0, ranks=(0, 1))
        prefill(group)
    """,
    "decode": """
        group = open_group(tiny, folder=folder)
        prefill(group)
        leave("ready", 0)
        while True:
            decode(group)
    """,
    "close": """
        group = open_group(tiny, folder=folder, trouble='sleep', at='close', seconds=3600.0, ranks=(0, 1))
        group.close()
    """,
    "rest": """
        group = open_group(tiny, folder=folder)
        leave("ready", 0)
        time.sleep(3600)
    """,
    "a step that holds Python": """
        group = open_group(tiny, folder=folder, trouble='hold', at='prefill', seconds=3.0, ranks=(0, 1))
        prefill(group)
    """,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_engine_takes_its_ranks_along(tiny: Path, tmp_path: Path, moment: str) -> None:
    """Mutant seen to fail: no watch in the rank."""
    with program(tiny, tmp_path, MOMENTS[moment]) as process:
        signs = ("ready",) if moment in ("decode", "rest") else ("0.in_trouble", "1.in_trouble")
        eventually(lambda: all((tmp_path / sign).exists() for sign in signs))
        process.kill()
        process.wait(GUARD)
        eventually(lambda: ended(tmp_path))


def test_a_forked_child_neither_ends_nor_keeps_the_ranks(tiny: Path, tmp_path: Path) -> None:
    """Its end of the sockets is closed, its copy of the group useless; its exit leaves the parent's ranks alone, and
    they end with the parent although the child lives.

    Mutant to catch: no `register_at_fork`.
    """
    code = """
        from langchain_accel.errors import EngineClosed
        group = open_group(tiny, folder=folder)
        expected = prefill(group).copy()
        theirs = {os.readlink(f"/proc/self/fd/{rank.channel.fileno()}") for rank in group._ranks}
        short = os.fork()
        if short == 0:
            if any(theirs & {entry.partition(" ")[2]} for entry in descriptors()):
                os._exit(2)
            group.close()
            try:
                prefill(group)
            except EngineClosed:
                del group
                import gc
                gc.collect()
                sys.exit(0)  # with atexit, as a worker of a web server
            os._exit(1)
        assert os.waitpid(short, 0)[1] == 0
        assert (prefill(group) == expected).all()
        long = os.fork()
        if long == 0:
            leave("child", os.getpid())
            time.sleep(3600)
        while True:
            decode(group)
    """
    with program(tiny, tmp_path, code) as process:
        eventually((tmp_path / "child").exists)
        child = int((tmp_path / "child").read_text(encoding="utf-8"))
        try:
            assert not ended(tmp_path)
            process.kill()
            process.wait(GUARD)
            eventually(lambda: ended(tmp_path))
            assert not dead(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_an_end_of_the_socket_that_somebody_keeps_does_not_keep_the_ranks(tiny: Path, tmp_path: Path) -> None:
    """A library may fork without Python's knowledge. Mutant seen to fail: `getppid` not looked at."""
    code = """
        import subprocess
        group = open_group(tiny, folder=folder)
        for rank in group._ranks:
            os.set_inheritable(rank.channel.fileno(), True)
        keeper = subprocess.Popen(["sleep", "3600"], close_fds=False)
        leave("child", keeper.pid)
        time.sleep(3600)
    """
    with program(tiny, tmp_path, code) as process:
        eventually((tmp_path / "child").exists)
        child = int((tmp_path / "child").read_text(encoding="utf-8"))
        try:
            process.kill()
            process.wait(GUARD)
            eventually(lambda: ended(tmp_path))
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("stdin", [False, True])
@pytest.mark.parametrize("how", ["returns", "raises", "exits", "closes"])
def test_an_interpreter_that_exits_leaves_nothing(tiny: Path, tmp_path: Path, how: str, *, stdin: bool) -> None:
    """Also one that reads its program from standard input, where nothing could import `__main__` again."""
    endings = {"returns": "pass", "raises": "1 / 0", "exits": "sys.exit(3)", "closes": "group.close()"}
    code = f"""
        group = open_group(tiny, folder=folder)
        prefill(group)
        print("served", flush=True)
        {endings[how]}
    """
    with program(tiny, tmp_path, code, stdin=stdin) as process:
        code, out, err = finished(process)
        assert out == "served\n"
        assert code == {"raises": 1, "exits": 3}.get(how, 0)
        assert ("ZeroDivisionError" in err) == (how == "raises")
        eventually(lambda: ended(tmp_path))


@pytest.mark.parametrize("at", ["load", "prefill"])
def test_an_interpreter_exits_although_a_model_loads_or_computes(tiny: Path, tmp_path: Path, at: str) -> None:
    """It waits for no load, and for a step a few seconds only: here the first of the warm-up.

    Mutants seen to fail: no `atexit`, so that the exit waits for the load; no `end_in`, so that it waits for the step.
    """
    code = f"""
        from langchain_accel.runtime.engine import Engine
        from tests.unit_tests.devices_for_tests import Letters
        def load(progress):
            return open_group(tiny, folder=folder, trouble="sleep", at={at!r}, seconds=3600.0, ranks=(0, 1))
        def make():
            try:
                Engine(load, Letters(), eos_ids=frozenset())
            except Exception as error:
                pass
        threading.Thread(target=make, daemon=True).start()
        eventually(lambda: all(Path(folder, f"{{rank}}.in_trouble").exists() for rank in (0, 1)))
    """
    with program(tiny, tmp_path, code) as process:
        assert finished(process)[0] == 0
        eventually(lambda: ended(tmp_path))


def test_control_c_reaches_the_engine_alone(tiny: Path, tmp_path: Path) -> None:
    """A terminal sends it to the whole process group; the engine finishes its work first.

    Mutant to catch: `start_new_session` and the ignored signal left out.
    """
    code = """
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born ignoring it
        group = open_group(tiny, folder=folder)
        prefill(group)
        try:
            Path(folder, "ready").touch()
            time.sleep(3600)
        except KeyboardInterrupt:
            time.sleep(0.5)
            for _ in range(100):
                decode(group)
            group.close()
            print("closed in peace")
    """
    with program(tiny, tmp_path, code, start_new_session=True) as process:
        eventually((tmp_path / "ready").exists)
        os.killpg(process.pid, signal.SIGINT)
        code, out, err = finished(process)
        assert (code, out) == (0, "closed in peace\n"), err
        eventually(lambda: ended(tmp_path))


@pytest.mark.parametrize("how", ["closes", "dies", "loses a rank"])
def test_what_a_rank_started_ends_with_it(tiny: Path, tmp_path: Path, how: str) -> None:
    """Compilers and their pools. Mutants seen to fail: `kill` instead of `killpg`; `_exit` alone in the rank."""
    endings = {
        "closes": "group.close()",
        "dies": "os.kill(os.getpid(), signal.SIGKILL)",
        "loses a rank": "os.kill(pids(group)[0], signal.SIGKILL)\neventually(lambda: group.lost)",
    }
    code = "group = open_group(tiny, folder=folder, trouble='child', at='prefill')\nprefill(group)\n" + endings[how]
    with program(tiny, tmp_path, code + "\ntime.sleep(3600)"):
        eventually((tmp_path / "child").exists)
        child = int((tmp_path / "child").read_text(encoding="utf-8"))
        try:
            eventually(lambda: dead(child))
        finally:
            if not dead(child):
                os.kill(child, signal.SIGKILL)


def test_ranks_know_their_place(tiny: Path, tmp_path: Path) -> None:
    """Mutants to catch: another address for each rank; a port that somebody else gets while the model loads."""
    group = open_group(tiny, folder=str(tmp_path))
    ranks = known(tmp_path)
    address = ranks[0]["rank"][-1]
    assert address.startswith("127.0.0.1:")
    assert [rank["rank"] for rank in ranks] == [[0, 2, 0, 2, address], [1, 2, 1, 2, address]]
    assert all(rank["main_thread"] for rank in ranks)
    assert all(rank["session"] == rank["pid"] for rank in ranks)
    assert [rank["pid"] for rank in ranks] == pids(group)
    group.close()


def test_a_single_rank_has_nobody_to_meet(tiny: Path, tmp_path: Path) -> None:
    group = open_group(tiny, size=1, folder=str(tmp_path))
    assert known(tmp_path, 1)[0]["rank"] == [0, 1, 0, 1, ""]
    group.close()


def test_progress_of_rank_0_is_told(tiny: Path) -> None:
    """In the thread that loads. Mutant to catch: progress of every rank told."""
    told: list[tuple[str, int, int]] = []
    group = open_group(tiny, progress=lambda *news: told.append(news))
    assert told == [("reading weights", 0, 1), ("reading weights", 1, 1)]
    prefill(group)
    decode(group)
    group.close()


def test_a_progress_that_raises_ends_the_load(tiny: Path, tmp_path: Path) -> None:
    """Mutant to catch: ranks left behind."""

    def progress(*news: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_group(tiny, progress=progress, folder=str(tmp_path))
    left = [json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.glob("*.json")]
    assert [rank["rank"] for rank in left if not gone(rank["pid"])] == []
    assert left, "rank 0 has told of its progress"
