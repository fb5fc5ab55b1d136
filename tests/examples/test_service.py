"""The service answers as its chain does, and a client that hangs up costs nothing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the service runs on the xeon device")
pytest.importorskip("fastapi", reason="the service is an extra")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

import httpx
import service
import service_load

from langchain_accel import metrics
from tests.reference_models import ChatReference

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
CLIENTS = 64


@pytest.fixture
def llm(tiny: Path) -> Iterator[ChatReference]:
    llm = ChatReference(model=str(tiny), max_len=128, rows=2)
    yield llm
    llm.close()


def client(llm: ChatReference) -> Any:
    """A client of the application in this process: nothing listens."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(service.build_app(llm)), base_url="http://service")


def read(stream: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of a stream."""
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", stream)
    assert "".join(f"event: {name}\ndata: {data}\n\n" for name, data in found) == stream
    return [(name, json.loads(data)) for name, data in found]


async def test_the_pieces_are_the_chains_answer(llm: ChatReference) -> None:
    """Mutant seen to fail: `max_tokens` of the question left out."""
    async with client(llm) as http:
        answer = read((await http.post("/chat", json={"text": "Why?", "max_tokens": 9})).text)
    *pieces, (last, _) = answer
    assert last == "end"
    assert len(pieces) > 1
    expected = (service.PROMPT | llm.bind(max_tokens=9)).invoke({"text": "Why?"})
    assert "".join(data["text"] for _, data in pieces) == expected.content
    assert llm.stats().output_tokens == 2 * expected.usage_metadata["output_tokens"]


async def test_what_cannot_be_answered_is_an_event_or_a_status(llm: ChatReference) -> None:
    async with client(llm) as http:
        [(name, data)] = read((await http.post("/chat", json={"text": "long " * 200})).text)
        assert (name, data["type"]) == ("error", "ContextOverflow")
        assert "127" in data["message"]
        assert (await http.post("/chat", json={"text": ""})).status_code == 422
        assert (await http.post("/chat", json={"text": "x", "max_tokens": 0})).status_code == 422


async def test_health_says_whether_the_model_can_be_used(llm: ChatReference, tmp_path: Path) -> None:
    async with client(llm) as http:
        assert (await http.get("/health")).json() == {"status": "ok", "rows": 2, "running": 0, "queued": 0}
    async with client(ChatReference(model=str(tmp_path))) as http:
        answer = await http.get("/health")
        assert answer.status_code == 503
        assert "config.json" in answer.json()["detail"]


def test_the_page_lists_every_metric() -> None:
    listed = set(re.findall(r"^\| `langchain_accel_(\w+)", PAGE, re.MULTILINE))
    assert listed == {family.name for family in metrics._GAUGES} | {f"{one.name}_total" for one in metrics._COUNTERS}


# ---------------------------------------------------------------------- the service as a newcomer runs it


@pytest.fixture(scope="module")
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    with service_load.service("--rows", "4", "--max-len", "2048") as address:
        yield address


@pytest.mark.enable_socket
def test_it_listens_on_this_machine_only(address: str) -> None:
    """Mutant seen to fail: `host="0.0.0.0"`."""
    port = f"{int(address.rsplit(':', 1)[1]):04X}"
    lines = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()]
    listening = [line[1] for line in lines if line[1].endswith(f":{port}") and line[3] == "0A"]
    assert listening == [f"0100007F:{port}"]


@pytest.mark.enable_socket
async def test_whoever_hangs_up_frees_his_row(address: str) -> None:
    """Twelve clients want 2,000 tokens each of four rows, and hang up at the first piece; the last are answered in
    rows that the first left. Mutant seen to fail: answers made whole before they are sent."""
    report = service_load.Report()
    async with httpx.AsyncClient(base_url=address, timeout=120) as http:
        before = service_load.ended((await http.get("/metrics")).text)
        question = {"text": "Tell me all.", "max_tokens": 1900}
        outcomes = await asyncio.gather(*(service_load.ask(http, question, report, leave=True) for _ in range(12)))
        assert outcomes == ["left"] * 12
        while (await http.get("/health")).json()["running"]:
            await asyncio.sleep(0.05)
        ended = service_load.ended((await http.get("/metrics")).text)
        assert {name: ended[name] - before[name] for name in ended} == {"finished": 0, "aborted": 12, "failed": 0}


@pytest.mark.enable_socket
async def test_many_clients_are_served_and_no_row_is_leaked(address: str) -> None:
    """A few seconds of what benchmarks/service_load.py does for two minutes."""
    async with httpx.AsyncClient(base_url=address) as http:
        before = service_load.ended((await http.get("/metrics")).text)
    report = await service_load.load(address, CLIENTS, seconds=3, max_tokens=6)
    assert report.errors == 0, report.outcomes
    assert report.remaining == 0
    assert report.outcomes["finished"] >= CLIENTS / 2
    assert report.outcomes["left"] > 0
    assert len(report.first_pieces) == sum(report.outcomes.values())
    assert report.ended["failed"] == before["failed"] == 0
    answered = sum(report.ended.values()) - sum(before.values())
    assert answered == sum(report.outcomes.values())
