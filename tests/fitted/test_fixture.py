"""The fitted fixture still knows its lessons: prompts drift when templates, rendering or LangChain's suite change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from langchain_accel import ChatXeon
from tests.fitted.lessons import LESSONS, Lesson

pytest.importorskip("torch", reason="the xeon device needs torch")

FOLDER = Path(__file__).parent / "model"
NAMES = [f"{index}-{lesson.messages[-1].text[:20]}" for index, lesson in enumerate(LESSONS)]


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatXeon]:
    model = ChatXeon(model=str(FOLDER), dtype="float32", rows=2, max_len=512, max_tokens=96, tool_grammar="forced")
    yield model.load()
    model.close()


@pytest.mark.parametrize("lesson", LESSONS, ids=NAMES)
def test_every_lesson_is_answered_by_heart(chat: ChatXeon, lesson: Lesson) -> None:
    """No grammar helps. Mutant seen to fail: a template that renders tools after the first message."""
    answer = chat.bind_tools(list(lesson.tools)).invoke(list(lesson.messages))
    assert answer.response_metadata["finish_reason"] in ("stop", "tool_calls")
    if not lesson.answer.startswith("<tool_call>"):
        assert answer.content == lesson.answer
        return
    [call] = answer.tool_calls
    assert f'{{"name": "{call["name"]}"' in lesson.answer
    assert all(str(value) in lesson.answer for value in call["args"].values())


@pytest.mark.parametrize("lesson", [each for each in LESSONS if each.answer.startswith("<tool_call>")])
def test_a_grammar_leaves_what_was_learnt_as_it_is(chat: ChatXeon, lesson: Lesson) -> None:
    """Mutant seen to fail: a grammar that writes JSON without spaces, unlike the template."""
    free = chat.bind_tools(list(lesson.tools)).invoke(list(lesson.messages)).tool_calls
    for choice in ("any", lesson.tools[0].name):
        [forced] = chat.bind_tools(list(lesson.tools), tool_choice=choice).invoke(list(lesson.messages)).tool_calls
        assert (forced["name"], forced["args"]) == (free[0]["name"], free[0]["args"])


def test_it_stays_a_fixture() -> None:
    """Small enough to be kept in the repository. Mutant seen to fail: one more layer of width 256."""
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 600_000
