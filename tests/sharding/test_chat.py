"""`ChatXeon(tensor_parallel_size=2)`: no launcher, no script, the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from langchain_accel import ChatXeon, XeonOptions
from langchain_accel.errors import PlanRejected
from tests.tiny_models import make

QUESTIONS = ["What is number one?", "And the sea?", "Tell me of the hills."]


def chat(folder: Path, ranks: int) -> ChatXeon:
    return ChatXeon(
        model=str(folder),
        tensor_parallel_size=ranks,
        rows=4,
        max_len=96,
        max_tokens=10,
        dtype="float32",
        options=XeonOptions(threads=1, prefill_chunk=64, shared_memory=False),
    )


def test_invoke_stream_and_batch_equal_one_process(tmp_path: Path) -> None:
    folder = make("phi3", tmp_path / "phi3", eos_token_id=383)
    one, two = chat(folder, 1), chat(folder, 2)
    try:
        expected = [one.invoke(question).content for question in QUESTIONS]
        assert len(set(expected)) == len(QUESTIONS)
        assert all(expected)
        assert two.invoke(QUESTIONS[0]).content == expected[0]
        assert "".join(str(chunk.content) for chunk in two.stream(QUESTIONS[1])) == expected[1]
        assert [answer.content for answer in two.batch(QUESTIONS)] == expected
    finally:
        one.close()
        two.close()


def test_uneven_heads_are_refused_at_load(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "llama")
    with pytest.raises(PlanRejected, match=r"tensor_parallel_size=4 does not divide the model's 6 attention heads"):
        chat(folder, 4).load()
