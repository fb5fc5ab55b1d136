"""Checks of the demo corpus: shape, answer spans and findability of the pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CORPUS = EXAMPLES / "corpus"
QUESTIONS = EXAMPLES / "questions.json"

PAGE_COUNT = 20
MIN_WORDS, MAX_WORDS = 450, 700
TOP_K = 3
MIN_FOUND = 9

PAGES: dict[str, str] = {path.name: path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("*.md"))}
DATA: dict[str, Any] = json.loads(QUESTIONS.read_text(encoding="utf-8"))
ANSWERABLE: list[dict[str, str]] = DATA["answerable"]
UNANSWERABLE: list[str] = DATA["unanswerable"]


def paragraphs(text: str) -> list[str]:
    """Blank-line blocks of a page, without its headings."""
    blocks = (block.strip() for block in re.split(r"\n\s*\n", text))
    return [block for block in blocks if block and not block.startswith("#")]


def sentences(text: str) -> list[str]:
    """Sentences of a page, without its headings."""
    return [sentence for block in paragraphs(text) for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z*\d-])", block)]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def contains_span(text: str, span: str) -> bool:
    """Whether the span stands in the text on its own, not as part of a longer token."""
    return re.search(rf"(?<![\w.]){re.escape(span)}(?!\w|\.\d)", text) is not None


def by_question(item: dict[str, str]) -> str:
    return item["question"]


each_question: Callable[..., Any] = pytest.mark.parametrize("item", ANSWERABLE, ids=by_question)


def test_page_count_and_names() -> None:
    assert len(PAGES) == PAGE_COUNT
    for number, name in enumerate(PAGES, start=1):
        assert re.fullmatch(rf"{number:02d}-[a-z0-9]+(-[a-z0-9]+)*\.md", name)


@pytest.mark.parametrize("name", PAGES)
def test_page_starts_with_its_only_title(name: str) -> None:
    text = PAGES[name]
    assert re.match(r"# \S", text)
    assert len(re.findall(r"^# ", text, flags=re.MULTILINE)) == 1
    assert text.endswith("\n")
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", PAGES)
def test_page_fits_one_printed_page(name: str) -> None:
    assert MIN_WORDS <= len(PAGES[name].split()) <= MAX_WORDS


def test_titles_and_paragraphs_are_distinct() -> None:
    titles = [text.splitlines()[0] for text in PAGES.values()]
    assert len(set(titles)) == PAGE_COUNT
    blocks = [block for text in PAGES.values() for block in paragraphs(text)]
    assert len(set(blocks)) == len(blocks)


def test_questions_shape() -> None:
    assert set(DATA) == {"answerable", "unanswerable"}
    assert len(ANSWERABLE) == 10
    assert len(UNANSWERABLE) == 3
    for item in ANSWERABLE:
        assert set(item) == {"question", "answer", "source"}
        assert item["question"].endswith("?")
        assert item["source"] in PAGES
    for question in UNANSWERABLE:
        assert question.endswith("?")
    asked = [item["question"] for item in ANSWERABLE] + UNANSWERABLE
    assert len(set(asked)) == len(asked)
    assert len({item["source"] for item in ANSWERABLE}) == len(ANSWERABLE)


@each_question
def test_answer_stands_once_and_only_in_its_source(item: dict[str, str]) -> None:
    assert item["answer"] in PAGES[item["source"]]
    hits = [
        (name, sentence)
        for name, text in PAGES.items()
        for sentence in sentences(text)
        if contains_span(sentence, item["answer"])
    ]
    # One sentence of the source page holds the answer; no other page offers the span.
    assert {name for name, _ in hits} == {item["source"]}
    assert len(hits) == 1


@each_question
def test_answer_sentence_differs_from_other_pages_and_from_the_question(
    item: dict[str, str],
) -> None:
    answer_sentence = next(
        sentence for sentence in sentences(PAGES[item["source"]]) if contains_span(sentence, item["answer"])
    )
    own = words(answer_sentence)
    for name, text in PAGES.items():
        if name == item["source"]:
            continue
        for other in map(words, sentences(text)):
            assert len(own & other) / len(own | other) < 0.75
    asked = words(item["question"])
    assert len(asked & own) / len(asked | own) < 0.75


def test_bm25_finds_the_source_pages(
    record_property: Callable[[str, object], None],
) -> None:
    bm25s = pytest.importorskip("bm25s")
    chunks = [(name, block) for name, text in PAGES.items() for block in paragraphs(text)]

    def tokenize(texts: list[str]) -> Any:
        return bm25s.tokenize(texts, stopwords="en", show_progress=False)

    retriever = bm25s.BM25()
    retriever.index(tokenize([block for _, block in chunks]), show_progress=False)
    found, missed = 0, []
    for item in ANSWERABLE:
        ids, _ = retriever.retrieve(tokenize([item["question"]]), k=TOP_K, show_progress=False)
        names = [chunks[int(i)][0] for i in ids[0]]
        if item["source"] in names:
            found += 1
        else:
            missed.append((item["question"], names))
    record_property("bm25_found_in_top_3", found)
    print(f"BM25: source page within the top {TOP_K} for {found} of {len(ANSWERABLE)} questions")
    assert found >= MIN_FOUND, missed
