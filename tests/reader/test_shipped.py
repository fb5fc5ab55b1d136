"""The model that comes with the package: what it is, that it still reads, and what rounding its weights costs.

The thresholds lie well below the scores of its model card: they catch what breaks it, not noise.
"""

from __future__ import annotations

import json
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("torch")

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

from langchain_accel import ChatXeon, XeonOptions, embedded_reader
from tools.reader.evaluate import score, tasks

LEAST = {
    "extractive, one passage": 0.8,
    "extractive, five distractor passages": 0.7,
    "unanswerable": 0.6,
    "answer from a tool's result": 0.8,
}


@cache
def right(weights: str) -> dict[str, float]:
    """Share of right answers of the first tenth of each part."""
    parts = [part for part in tasks(0.1) if part.name in LEAST]
    with closing(reader(options=XeonOptions(weights=weights))) as llm:
        return {part.name: score(llm, part)[0].percent / 100 for part in parts}


def reader(**fields: object) -> ChatXeon:
    return ChatXeon(model=embedded_reader(), rows=8, max_len=2048, max_tokens=128, dtype="float32", **fields)


def test_it_is_small_and_whole() -> None:
    folder = Path(embedded_reader())
    assert (folder / "model.safetensors").stat().st_size <= 12e6
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 2048
    # Other heads optimum-habana and optimum-neuron do not take.
    assert config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    # What the transformers 4 of vendors' stacks would not find, or silently take another number for.
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert {"generation_config.json", "tokenizer.json", "chat_template.jinja", "README.md"} <= {
        path.name for path in folder.iterdir()
    }


@pytest.mark.parametrize("part", LEAST)
def test_it_still_reads(part: str) -> None:
    assert right("exact")[part] >= LEAST[part]


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_it_still_reads_in_fewer_bits(weights: str) -> None:
    """They cost answers (docs/performance.md says how many), not the ability.

    Without 8 bits where the next token hangs on it, 4 bits answered nothing at all.
    """
    pytest.importorskip("langchain_accel_kernels", reason="pip install ./kernels")
    exact, rounded = (sum(right(each).values()) / len(LEAST) for each in ("exact", weights))
    assert rounded >= exact - 0.25


def test_it_answers_from_a_text_of_a_users() -> None:
    text = "The harbour office of Marlowe opens at 8. The ferry to Marlowe leaves every 40 minutes. The pier is closed."
    with closing(reader()) as llm:
        answer = llm.invoke(f"Passages:\n{text}\n\nQuestion: How often does the ferry to Marlowe leave?")
    assert answer.content == "The ferry to Marlowe leaves every 40 minutes."


def test_a_bound_tool_is_called_with_words_of_the_request() -> None:
    @tool
    def book_table(place: str, guests: int) -> str:
        """Book a table."""
        return f"{place} {guests}"

    with closing(reader()) as llm:
        answer = llm.bind_tools([book_table]).invoke([HumanMessage("Book a table with place Marlowe and guests 4.")])
    (call,) = answer.tool_calls
    assert call["name"] == "book_table"
    assert call["args"] == {"place": "Marlowe", "guests": 4}
