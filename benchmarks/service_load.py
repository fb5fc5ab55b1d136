"""Many clients at once on `examples/service.py`, some of which hang up in the middle of an answer.

    python benchmarks/service_load.py [--clients 64] [--seconds 120] [--rows 16] [--max-tokens 32] [--model PATH]

Starts the service as a process of its own on a free port of this machine. Each client asks, reads its answer as it
comes and asks again until time is up; every fifth request is left after its first piece. Prints how many answers were
finished, left and failed, p50 and p95 of the time from a request to its first piece, and what the service still holds
afterwards: nothing, if no row was leaked. Exit code 1: an error, or a row that stays busy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from langchain_accel.runtime.stats import percentiles

SERVICE = Path(__file__).resolve().parents[1] / "examples" / "service.py"
LEAVES = 5
START_SECONDS, QUIET_SECONDS, REQUEST_SECONDS = 180.0, 30.0, 120.0


@dataclass
class Report:
    """What clients saw; times are in seconds.

    Attributes:
        outcomes: answers `finished` and `left`; `failed` with the error's name.
        first_pieces: from each request to the first piece of its answer.
        seconds: from the first request to the last answer.
        remaining: requests that the service still held when it had been left alone.
        ended: requests by how they ended, as the service's own metrics count them.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    first_pieces: list[float] = field(default_factory=list)
    seconds: float = 0.0
    remaining: int = 0
    ended: dict[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """Answers that failed."""
        return sum(count for name, count in self.outcomes.items() if name not in ("finished", "left"))


@contextmanager
def service(*arguments: str) -> Iterator[str]:
    """Run the service and yield its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(SERVICE), "--port", str(port), *arguments])  # noqa: S603
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                msg = f"the service did not start; its exit code is {process.returncode}"
                raise RuntimeError(msg)
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


async def load(address: str, clients: int, seconds: float, max_tokens: int) -> Report:
    """Let clients ask for a time, wait until the service is quiet, and report."""
    report = Report()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=REQUEST_SECONDS) as http:
        await asyncio.gather(*(_client(http, number, began + seconds, max_tokens, report) for number in range(clients)))
        report.seconds = time.monotonic() - began
        quiet = time.monotonic() + QUIET_SECONDS
        while (remaining := await _held(http)) and time.monotonic() < quiet:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.1)
        report.remaining = remaining
        report.ended = ended((await http.get("/metrics")).text)
    return report


def ended(metrics: str) -> dict[str, int]:
    """Return how many requests ended in which way, from the text of the service's metrics."""
    found = re.findall(r'^langchain_accel_requests_ended_total\{.*outcome="(\w+)".*\} (\S+)$', metrics, re.MULTILINE)
    return {outcome: int(float(count)) for outcome, count in found}


async def _client(http: httpx.AsyncClient, number: int, until: float, max_tokens: int, report: Report) -> None:
    """Ask one question after the other."""
    asked = 0
    while time.monotonic() < until:
        question = {"text": f"Client {number}, question {asked}: why is the sky blue?", "max_tokens": max_tokens}
        try:
            report.outcomes[await ask(http, question, report, leave=(number + asked) % LEAVES == 0)] += 1
        except httpx.HTTPError as error:
            report.outcomes[f"failed: {type(error).__name__}"] += 1
        asked += 1


async def ask(http: httpx.AsyncClient, question: dict[str, Any], report: Report, *, leave: bool) -> str:
    """Ask one question and return how it ended; `leave` hangs up after the first piece."""
    began, name = time.monotonic(), ""
    async with http.stream("POST", "/chat", json=question) as response:
        if response.status_code != httpx.codes.OK:
            return f"failed: status {response.status_code}"
        pieces = 0
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and name == "message":
                pieces += 1
                if pieces == 1:
                    report.first_pieces.append(time.monotonic() - began)
                    if leave:
                        return "left"
            elif line.startswith("data: "):
                return "finished" if name == "end" else f"failed: {json.loads(line.removeprefix('data: '))['type']}"
    return "failed: the stream broke off"


async def _held(http: httpx.AsyncClient) -> int:
    """Return how many requests the service is busy with."""
    health = (await http.get("/health")).json()
    return int(health["running"]) + int(health["queued"])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--model", help="model folder (default: a tiny random one)")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    args = parser.parse_args()
    model = ["--model", args.model] if args.model else []
    with service("--rows", str(args.rows), *model) as address:
        report = asyncio.run(load(address, args.clients, args.seconds, args.max_tokens))
    p50, p95 = percentiles(report.first_pieces)
    answers = report.outcomes["finished"]
    print(f"{args.clients} clients for {report.seconds:.0f} s on {args.rows} rows, answers of {args.max_tokens} tokens")
    print(f"answers: {', '.join(f'{count} {name}' for name, count in sorted(report.outcomes.items()))}")
    print(f"{answers / report.seconds:.1f} answers/s; first piece p50 {p50:.3f} s, p95 {p95:.3f} s")
    print(f"the service still holds {report.remaining} requests; by its own count they ended: {report.ended}")
    if args.json:
        args.json.write_text(json.dumps(vars(report)), encoding="utf-8")
    return int(bool(report.errors or report.remaining))


if __name__ == "__main__":
    sys.exit(main())
