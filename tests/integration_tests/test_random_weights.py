"""What a grammar promises holds on any weights: calls and answers are valid, and none is cut off."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.reference_models import ChatReference
from tests.schemas_of_real_shape import SCHEMAS

SEEDS = int(os.environ.get("RANDOM_WEIGHT_SEEDS", "2"))
"""Answers per schema; 10 gives the 500 answers and 500 calls of the documentation."""

MAX_TOKENS = 300
"""Enough for the least that any of the schemas needs, and little enough that strings without end must be closed."""


@pytest.fixture(scope="module")
def chat(tiny: Path) -> Iterator[ChatReference]:
    model = ChatReference(
        model=str(tiny),
        rows=8,
        max_len=1024,
        temperature=1.0,
        max_tokens=MAX_TOKENS,
        chat_template="{{ messages[0].content }}",
        tool_format="hermes",
    )
    yield model.load()
    assert model.stats().undeclared_shapes == model.stats().failed == 0
    model.close()


def wrong(schema: dict[str, Any], value: Any) -> str | None:
    """Why a value does not follow a schema, formats included; a grammar knows the form of a date, not leap years."""
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    errors = validator(schema, format_checker=validator.FORMAT_CHECKER).iter_errors(value)
    errors = (error for error in errors if not (error.validator == "format" and "-02-29" in str(error.instance)))
    return next((f"{value!r}: {error.message}" for error in errors), None)


async def test_every_answer_follows_its_schema(chat: ChatReference) -> None:
    """Mutant seen to fail: grammars compiled without a limit."""

    async def one(name: str, seed: int) -> str | None:
        wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMAS[name]}}
        answer = await chat.ainvoke("Go", response_format=wanted, seed=seed)
        return wrong(SCHEMAS[name], json.loads(answer.text))

    faults = await asyncio.gather(*(one(name, seed) for name in SCHEMAS for seed in range(SEEDS)))
    assert len(faults) == 50 * SEEDS
    assert [fault for fault in faults if fault] == []


async def test_every_forced_call_follows_its_schema(chat: ChatReference) -> None:
    """Schemas that are no object stand in a property of one, as arguments do.

    Mutant seen to fail: grammars compiled without a limit.
    """

    async def one(name: str, seed: int) -> str | None:
        schema = SCHEMAS[name]
        if schema.get("type") != "object":
            inner = {key: value for key, value in schema.items() if key != "$defs"}
            schema = {"type": "object", "properties": {"value": inner}, "required": ["value"]}
            schema |= {"$defs": SCHEMAS[name]["$defs"]} if "$defs" in SCHEMAS[name] else {}
        tool = {"type": "function", "function": {"name": "record", "parameters": schema}}
        choice = {"tools": [tool], "tool_choice": "record", "parallel_tool_calls": False}
        answer = await chat.ainvoke("Go", seed=seed, **choice)
        if answer.invalid_tool_calls or len(answer.tool_calls) != 1:
            return f"{name}: {answer!r}"
        return wrong(schema, answer.tool_calls[0]["args"])

    faults = await asyncio.gather(*(one(name, seed) for name in SCHEMAS for seed in range(SEEDS)))
    assert len(faults) == 50 * SEEDS
    assert [fault for fault in faults if fault] == []
