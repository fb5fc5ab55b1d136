"""Chaos: somebody is killed or frozen at a random moment, again and again. Always an error or a clean end.

Ten rounds, or as many as ACCEL_CHAOS_ROUNDS says; ACCEL_CHAOS_SEED repeats a run. The slowest notice is printed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.workers.helpers import GUARD, dead, eventually

ROUNDS = int(os.environ.get("ACCEL_CHAOS_ROUNDS", "10"))
SEED = int(os.environ.get("ACCEL_CHAOS_SEED", "0"))
ROOT = Path(__file__).resolve().parents[2]

SERVER = """
import json, sys, warnings
warnings.simplefilter("ignore")
from langchain_accel.devices import reference
from langchain_accel.devices.base import Placement, Plan
from langchain_accel.errors import AccelError
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import SamplingParams
from langchain_accel.runtime.workers import WorkerGroup
from tests.unit_tests.devices_for_tests import Letters

plan = Plan("reference", sys.argv[1], rows=2, max_len=64, options=reference.Options())
params = SamplingParams(max_tokens=30)

def load(progress):
    return WorkerGroup("langchain_accel.devices.reference", plan, Placement(ranks=2), progress)

def tell(**news):
    print(json.dumps(news), flush=True)

right = None
for _ in sys.stdin:
    engine, outcome = None, "fine"
    try:
        tell(phase="load")
        engine = Engine(load, Letters(), eos_ids=frozenset())
        tell(phase="prefill")
        for turn in range(4):
            streams = [engine.submit([*range(1, 30), number], params) for number in range(3)]
            if turn == 1:
                tell(phase="decode")
            answers = [stream.result().tokens for stream in streams]
            right = right or answers
            assert answers == right, "a wrong answer"
        tell(phase="close")
    except AccelError as error:
        outcome = f"{type(error).__name__}: {error}"
    if engine:
        engine.close()
    tell(outcome=outcome)
"""

PHASES = ("load", "prefill", "decode", "close")


class Server:
    """A process that loads, answers and closes, a round at a time."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        )

    def begin(self) -> None:
        print(file=self.process.stdin, flush=True)

    def hear(self) -> dict[str, Any]:
        """What it says next; nothing once it is dead."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        return json.loads(line) if line else {}

    def ranks(self) -> list[int]:
        """Its children, in the order in which they were started."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return sorted(int(pid) for children in threads for pid in children.read_text().split())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def listening() -> set[str]:
    """Local addresses that somebody listens on."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return {fields[1] for fields in lines if fields[3] == "0A"}


def play(server: Server, chance: random.Random) -> tuple[str, float]:
    """Play one round; return what the server says of it, and how long after the blow it says so."""
    phase, pause = chance.choice(PHASES), chance.random() ** 2 * 0.6
    victim = chance.choice(["rank", "rank", "engine"])
    blow = chance.choice([signal.SIGKILL] * 3 + [signal.SIGTERM] + [signal.SIGSTOP] * (victim == "rank"))
    server.begin()
    while (heard := server.hear()) and heard.get("phase") != phase and "outcome" not in heard:
        pass
    time.sleep(pause)
    ranks = server.ranks()
    target = server.process.pid if victim == "engine" else chance.choice(ranks or [0])
    began = time.monotonic()
    if target:
        os.kill(target, blow)
    while heard and "outcome" not in heard:
        heard = server.hear()
    took = time.monotonic() - began
    if victim == "engine":
        server.process.wait(GUARD)
    eventually(lambda: all(map(dead, ranks)))
    outcome = "the engine is dead" if victim == "engine" else heard["outcome"]
    return f"{victim} {blow.name} {pause:.2f} s after {phase}: {outcome}", took


@pytest.mark.timeout(60 + 20 * ROUNDS)
def test_whoever_is_hit_there_is_an_error_or_a_clean_end(tiny: Path, tmp_path: Path) -> None:
    """And no wrong answer, no process, no file, no shared memory and no port is left.

    Mutants to catch: no `getppid` and no POLLRDHUP in the rank; no watch in the engine (a frozen rank); a load
    whose ranks are not killed when one of them dies.
    """
    chance = random.Random(SEED)
    memory, ports = set(Path("/dev/shm").iterdir()), listening()
    server, slowest = Server(tiny, tmp_path), (0.0, "")
    tally: dict[str, int] = {}
    try:
        for number in range(ROUNDS):
            said, took = play(server, chance)
            outcome = said.split(": ")[1]
            assert outcome in ("fine", "DeviceLost", "the engine is dead"), f"round {number}: {said}"
            print(f"{took:6.2f} s {said[:160]}", flush=True)
            tally[outcome] = tally.get(outcome, 0) + 1
            slowest = max(slowest, (took, said)) if outcome == "DeviceLost" else slowest
            assert took < GUARD, f"round {number}: {said}"
            if outcome == "the engine is dead":
                server.end()
                server = Server(tiny, tmp_path)
        server.begin()
        while "outcome" not in (heard := server.hear()):
            assert heard, "a server that is left alone lives"
        assert heard["outcome"] == "fine"
    finally:
        left = server.ranks()
        server.end()
        print(f"{ROUNDS} rounds, seed {SEED}: {tally}; slowest notice {slowest[0]:.2f} s: {slowest[1][:200]}")
    assert left == []
    assert [path for path in tmp_path.glob("*") if "inductor" not in path.name] == []  # torch makes a folder, once
    assert set(Path("/dev/shm").iterdir()) - memory == set()
    assert listening() - ports == set()
