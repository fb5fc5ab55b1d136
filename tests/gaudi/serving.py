"""Several models in one process that optimum-habana has taken over: its import takes longer than all of them.

Reads a list of orders from standard input, and writes one line of JSON per order: the tokens of each request at each
load, and what the stand-in counted meanwhile.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from functools import partial
from typing import Any

from langchain_accel.devices import gaudi
from langchain_accel.devices.base import Plan, Rank
from langchain_accel.devices.gaudi import Options
from langchain_accel.runtime.checkpoint import open_checkpoint
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import SamplingParams


def serve(order: dict[str, Any]) -> dict[str, Any]:
    """Load one model, answer its requests at each load, and count."""
    from pathlib import Path

    options = Options(**order["options"])
    plan = Plan("gaudi", order["folder"], rows=4, max_len=64, dtype="float32", options=options)
    checkpoint = open_checkpoint(Path(plan.model), trust_remote_code=False)
    engine = Engine(partial(gaudi.load, plan, options, Rank()), checkpoint.tokenizer, eos_ids=checkpoint.eos_ids)
    from habana_frameworks.torch import COUNTERS

    answered: dict[str, Any] = {}
    counted = [_counts(COUNTERS, engine)]
    for at_once in order["at_once"]:
        answered[str(at_once)] = answers(engine, order["requests"], at_once)
        counted.append(_counts(COUNTERS, engine))
    stats = engine.stats()
    engine.close()
    return {"answers": answered, "counts": counted, "undeclared": stats.undeclared_shapes, "aborted": stats.aborted}


def answers(engine: Engine, requests: list[tuple[list[int], int]], at_once: int) -> list[tuple[int, ...]]:
    """Submit requests, `at_once` at a time; strays join and are aborted among them."""
    running, got = deque[Any](), []
    for index, (prompt, tokens) in enumerate(requests):
        if len(running) == at_once:
            got.append(running.popleft().result().tokens)
        running.append(engine.submit(prompt, SamplingParams(max_tokens=tokens, temperature=0.0)))
        if index % 5 == 0:
            stray = engine.submit(prompt[::-1], SamplingParams(max_tokens=tokens + 9, temperature=0.0, ignore_eos=True))
            next(stray)
            stray.close()
    return got + [stream.result().tokens for stream in running]


def _counts(counters: Any, engine: Engine) -> dict[str, int]:
    stats = engine.stats()
    return {
        "captures": counters.captures,
        "compilations": counters.compilations,
        "recipes": len(counters.recipes),
        "reads": counters.host_reads,
        "steps": stats.prefill_steps + stats.decode_steps,
    }


if __name__ == "__main__":
    answer = sys.stdout
    sys.stdout = sys.stderr  # optimum-habana prints
    for order in json.load(sys.stdin):
        print(json.dumps(serve(order)), file=answer, flush=True)
