"""The documents tell the truth about what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for path in (ROOT / "langchain_accel").rglob("*.py") if path.name != "__init__.py")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_every_module_stands_in_the_structure(module: Path) -> None:
    """A new room that the plan of the house does not show fails here."""
    plan = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    if module.name == "_version.py":
        return
    shared_torch = "torch_rows" in module.parts
    assert (f"{module.parent.name}/" if shared_torch else module.name) in plan


def test_the_structure_names_no_module_that_is_gone() -> None:
    plan = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    tree = plan.split("```")[1]
    present = {path.name for path in (ROOT / "langchain_accel").rglob("*.py")}
    assert set(re.findall(r"\w+\.py", tree)) <= present


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:^|`)make (\w+)", document.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, f"{document.name} names {named - targets}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_files_stay_small(module: Path) -> None:
    """One noun per file; one over 300 lines needs a reason, which is given here."""
    reasons = {"reference.py": "the living definition reads best in one piece: model, arena and checks"}
    lines = len(module.read_text(encoding="utf-8").splitlines())
    assert lines <= 300 or module.name in reasons
