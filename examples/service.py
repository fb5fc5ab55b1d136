"""A chain as a web service: answers streamed as server-sent events, health and metrics.

    python examples/service.py                          # a random model made on the spot: shows the machinery
    python examples/service.py --model path/to/model
    curl -N -H 'content-type: application/json' -d '{"text": "Why is the sky blue?"}' http://127.0.0.1:8000/chat

It listens on this machine only; to serve others, put a proxy with TLS and authentication before it. All requests share
one engine: they are batched as they come. Whoever hangs up frees his row within one step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import StreamingResponse
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel, Field
from tiny_model import model_or_tiny

from langchain_accel import AccelChatModel, AccelError, ChatXeon, metrics

LONGEST_QUESTION, LONGEST_ANSWER = 20_000, 4096
PROMPT = ChatPromptTemplate.from_messages([("system", "You answer in one short paragraph."), ("human", "{text}")])


class Question(BaseModel):
    """What is asked, in characters, and the longest answer to it, in tokens."""

    text: str = Field(min_length=1, max_length=LONGEST_QUESTION)
    max_tokens: int = Field(default=256, ge=1, le=LONGEST_ANSWER)


def build_app(llm: AccelChatModel) -> FastAPI:
    """Return the service of a model, which is loaded when the service starts and closed when it ends."""
    collected = CollectorRegistry()
    metrics.register(collected)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(llm.load)
        yield
        await asyncio.to_thread(llm.close)

    app = FastAPI(title="langchain-accel", lifespan=lifespan)

    @app.post("/chat")
    async def chat(question: Question) -> StreamingResponse:
        """Stream an answer: events with `{"text": ...}`, then the event `end`, or `error` with what went wrong."""
        chain = PROMPT | llm.bind(max_tokens=question.max_tokens) | StrOutputParser()
        return StreamingResponse(events(chain, question.text), media_type="text/event-stream")

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Say whether requests are answered, and how many are under way; 503 while the model cannot be used."""
        try:
            stats = llm.stats()
        except AccelError as error:
            raise HTTPException(503, str(error)) from error
        return {"status": "ok", "rows": stats.rows, "running": stats.running, "queued": stats.queued}

    @app.get("/metrics")
    def scrape() -> Response:
        """Give the counters of the engine to Prometheus."""
        return Response(generate_latest(collected), media_type=CONTENT_TYPE_LATEST)

    return app


async def events(chain: Runnable[dict[str, str], str], text: str) -> AsyncIterator[str]:
    """Yield an answer as server-sent events; closing this generator, as a disconnect does, aborts the answer."""
    try:
        async with aclosing(chain.astream({"text": text})) as pieces:
            async for piece in pieces:
                yield event({"text": piece})
    except AccelError as error:  # a prompt that is too long, a full queue, a lost device: the status line is sent
        yield event({"type": type(error).__name__, "message": str(error)}, name="error")
    else:
        yield event({}, name="end")


def event(data: dict[str, Any], name: str = "message") -> str:
    """Return one server-sent event; JSON keeps line ends out of it."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder or hub id (default: a tiny random model made on the spot)")
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1 (default: 8000)")
    parser.add_argument("--rows", type=int, default=16, help="requests answered at once (default: 16)")
    parser.add_argument("--max-len", type=int, default=1024, help="tokens of prompt and answer (default: 1024)")
    args = parser.parse_args()
    with model_or_tiny(args.model) as fields:
        llm = ChatXeon(rows=args.rows, max_len=args.max_len, **fields)
        uvicorn.run(build_app(llm), host="127.0.0.1", port=args.port, log_level="warning", timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main()
