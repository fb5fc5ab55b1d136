"""The pages of the documentation do what they say: their code runs, their tables are complete."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the pages show the xeon device")

from langchain_core.language_models import BaseChatModel, BaseLLM

from langchain_accel import ChatXeon, XeonLLM, _register
from langchain_accel._settings import SAMPLING, AccelSettings
from langchain_accel._structured import CONSTRAINTS, OUTPUT
from tests.tiny_checkpoint import make_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {"chat-xeon.md": ChatXeon, "xeon-llm.md": XeonLLM}
HEADINGS = [
    "Overview",
    "Setup",
    "Installation",
    "Instantiation",
    "Invocation",
    "Streaming",
    "Async",
    "Batch",
    "Tool calling",
    "Structured output",
    "Constraints",
    "Reasoning models",
    "Token counting and limits",
    "Sharing weights, closing, stats",
    "init_chat_model and configurable models",
    "Errors",
    "API reference",
]


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    return text_of(page).split(f"\n## {heading}\n")[1].split("\n## ")[0]


def rows(text: str, columns: int) -> list[list[str]]:
    """Return the body rows of the tables with that many columns."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in lines if len(row) == columns and row[0].startswith("`")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("pages") / "tiny", max_position_embeddings=4096)


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The names of one page; its models are closed afterwards, and LangChain forgets our provider."""
    names: dict[str, Any] = {"__name__": "page"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads that spin for each other make a tiny model slow on busy cores
    chat_models = pytest.importorskip("langchain.chat_models")
    monkeypatch.setattr(chat_models.base, "_BUILTIN_PROVIDERS", dict(chat_models.base._BUILTIN_PROVIDERS))
    yield names
    for model in [*names.values(), *_register._kept.values()]:
        if isinstance(model, AccelSettings):
            model.close()
    _register._kept.clear()
    chat_models.base._get_chat_model_creator.cache_clear()


@pytest.mark.parametrize("page", PAGES)
def test_every_code_block_of_a_page_runs_in_order(page: str, folder: Path, namespace: dict[str, Any]) -> None:
    """On a tiny random Llama in float32; the asserts in the blocks are the forms that the page promises."""
    text = text_of(page)
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert len(blocks) >= 12
    for block in blocks:
        source = block[1].replace('model="path/to/model"', f'model={str(folder)!r}, dtype="float32"')
        source = "\n" * text[: block.start(1)].count("\n") + source.replace("path/to/model", str(folder))
        code = compile(source, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        result = eval(code, namespace)
        if inspect.iscoroutine(result):
            asyncio.run(result)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_headings_of_langchains_template(page: str) -> None:
    present = re.findall(r"^## (.+)$", text_of(page), re.MULTILINE)
    assert [heading for heading in present if heading in HEADINGS] == HEADINGS
    assert set(present) - set(HEADINGS) <= {"Chaining"}


@pytest.mark.parametrize(("page", "cls"), PAGES.items())
def test_the_reference_lists_every_field_with_its_default(page: str, cls: type[AccelSettings]) -> None:
    """Mutant seen to fail: a field left out of the table."""
    base = BaseChatModel if issubclass(cls, BaseChatModel) else BaseLLM
    own = {name: field for name, field in cls.model_fields.items() if name not in base.model_fields}
    expected = {}
    for name, field in own.items():
        default = field.default_factory() if field.default_factory else field.default
        expected[name] = "required" if field.is_required() else f"`{default!r}`"
    expected["options"] = "`XeonOptions()`"
    reference = section(page, "API reference")
    listed = {row[0].strip("`"): row[1] for row in rows(reference, 3)}
    assert listed == expected
    inherited = reference.split("LangChain's own fields")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", inherited)) == set(base.model_fields)


@pytest.mark.parametrize(("page", "cls"), PAGES.items())
def test_the_reference_lists_every_keyword_of_a_call(page: str, cls: type[AccelSettings]) -> None:
    names = {row[0].strip("`") for row in rows(section(page, "API reference"), 2)}
    expected = {*OUTPUT, "model", "chat_template_kwargs"} if cls is ChatXeon else {*CONSTRAINTS, "model"}
    assert names == expected
    fields = [name for name in cls.model_fields if name in SAMPLING]
    assert set(fields) == set(SAMPLING)


@pytest.mark.parametrize("page", PAGES)
def test_every_error_that_is_listed_exists_and_every_error_is_listed(page: str) -> None:
    from langchain_accel import errors

    listed = {name for row in rows(section(page, "Errors"), 2) for name in re.findall(r"\w+", row[0])}
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert listed == defined - {"AccelError", "UndeclaredShape"}, "an undeclared shape is our bug, not a user's"


def test_every_pain_names_tests_that_exist() -> None:
    """Fifteen pains, each with where it is reported and what shows its cure."""
    pains = text_of("pains.md").split("\n## ")[1:]
    assert len([pain for pain in pains if re.match(r"\d+\. ", pain)]) == 15
    for pain in pains:
        if not re.match(r"\d+\. ", pain):
            continue
        assert "](https://github.com/" in pain, f"{pain.splitlines()[0]}: where is it reported?"
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", pain)
        assert named, f"{pain.splitlines()[0]}: which test shows it?"
        for file, test in named:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"def {test}\(", source), f"{file} has no {test}"
