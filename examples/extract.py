"""Structured extraction: every page of a corpus becomes one JSON object of a nested schema, all pages as one batch.

    python examples/extract.py                          # a random model made on the spot: valid, but meaningless
    python examples/extract.py --model path/to/model    # a real model: facts
    python examples/extract.py --pages 20 > facts.jsonl

A grammar made from the schema says, token by token, what may come next, so that no line needs to be repaired or thrown
away. Notes go to standard error, JSON lines to standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from enum import Enum
from typing import Annotated

from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel, Field
from rag_qa import CORPUS
from tiny_model import model_or_tiny

from langchain_accel import ChatXeon

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "You extract facts from the handbook of Pellowmere Instruments. Copy numbers and names exactly."),
        ("human", "{page}"),
    ]
)


class Audience(Enum):
    """Whom a page is written for."""

    CUSTOMERS = "customers"
    STAFF = "staff"
    BOTH = "both"


class Figure(BaseModel, extra="forbid"):
    """A number that the page states."""

    what: str = Field(description="what is measured or limited", max_length=60)
    value: float
    unit: str | None = Field(description="such as months, EUR or metres per second", max_length=20)


class Facts(BaseModel, extra="forbid"):
    """What one page says."""

    title: str = Field(max_length=60)
    audience: Audience
    products: list[Annotated[str, Field(max_length=30)]] = Field(description="products that are named", max_length=3)
    figures: list[Figure] = Field(description="the most important figures", max_length=3)


def main() -> None:
    """Extract the facts of some pages and print them as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder or hub id (default: a tiny random model made on the spot)")
    parser.add_argument("--pages", type=int, default=4, help="pages to read, at most 20 (default: 4)")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest answer (default: 512)")
    args = parser.parse_args()

    pages = sorted(CORPUS.glob("*.md"))[: args.pages]
    with model_or_tiny(args.model) as model:
        llm = ChatXeon(**model, rows=4, max_len=2048, max_tokens=args.max_tokens)
        chain = PROMPT | llm.with_structured_output(Facts)
        found = chain.batch([{"page": page.read_text(encoding="utf-8")} for page in pages])
        for page, facts in zip(pages, found, strict=True):
            print(json.dumps({"page": page.name, **facts.model_dump(mode="json")}, ensure_ascii=False))
        stats = llm.stats()
        print(
            f"{len(found)} pages, {stats.output_tokens} tokens in {stats.decode_steps} decode steps.", file=sys.stderr
        )
        llm.close()


if __name__ == "__main__":
    main()
