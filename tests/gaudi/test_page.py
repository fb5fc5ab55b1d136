"""The page on Gaudi says what is there."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from langchain_accel import GaudiOptions
from langchain_accel.devices.gaudi.sharding import VERIFIED as SHARED
from langchain_accel.devices.gaudi.stack import PAIR
from langchain_accel.devices.gaudi.verified import VERIFIED, WRONG
from tests.gaudi.helpers import ROOT

PAGE = (ROOT / "docs" / "gaudi.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_its_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})


def test_it_names_the_models_that_were_verified_and_no_others() -> None:
    """Mutant: a model type more in `VERIFIED`."""
    text = section("Which models")
    named = re.search(r"compare with transformers: (.*?)\.", text, re.DOTALL)
    assert named is not None
    plain = {re.sub(r"\W", "", name.lower()) for name in named[1].split(",")}
    assert plain == {kind.replace("_", "") for kind in VERIFIED}
    assert re.search(r"On several Gaudi, (.*?)\.", text)[1].lower().split(", ") == sorted(SHARED)  # type: ignore[index]
    assert not VERIFIED & set(WRONG)


def test_its_words_and_versions_are_those_of_the_code() -> None:
    words = set(re.findall(r"^\| `(\w+)` \|", section("Llama-2 as in the tutorials"), re.MULTILINE))
    assert words <= {field.name for field in fields(GaudiOptions)}
    install = section("Install")
    for package, version in PAIR.items():
        assert re.search(rf"{package}.*\| {re.escape(version)}", install), package


def test_every_option_is_explained_or_explains_itself() -> None:
    """Each option stands on the page, by name."""
    for field in fields(GaudiOptions):
        assert re.search(rf"\b{field.name}\b", PAGE), field.name
