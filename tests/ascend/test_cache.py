"""The folder of compiled graphs: one process at a time, and nothing half done is ever used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from langchain_accel.devices.ascend.cache import CompileCache, folder

CONTENT = {"rows": 4}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a cache sets is unset again."""
    with monkeypatch.context() as patch:
        patch.setenv("MS_COMPILER_CACHE_ENABLE", "unset")
        patch.setenv("MS_COMPILER_CACHE_PATH", "unset")
        yield


def told() -> tuple[str, str]:
    """What MindSpore is told."""
    return os.environ["MS_COMPILER_CACHE_ENABLE"], os.environ["MS_COMPILER_CACHE_PATH"]


def test_a_folder_that_is_whole_is_found_again(tmp_path: Path) -> None:
    """Mutant seen to fail: the mark of a whole folder not looked for."""
    first = CompileCache(tmp_path / "graphs", CONTENT)
    enabled, path = told()
    assert (first.found, enabled) == (False, "1")
    (Path(path) / "graph").touch()
    first.keep()
    again = CompileCache(tmp_path / "graphs", CONTENT)
    assert (again.found, told()) == (True, ("1", path))
    assert (Path(path) / "graph").exists()
    other = CompileCache(tmp_path / "graphs", {"rows": 5})
    assert other.found is False
    assert told() != ("1", path)


def test_a_folder_that_was_not_completed_is_emptied(tmp_path: Path) -> None:
    """Mutant seen to fail: it is used as it is."""
    first = CompileCache(tmp_path, CONTENT)
    (Path(told()[1]) / "half a graph").touch()
    first.close()  # as a process that ends does
    again = CompileCache(tmp_path, CONTENT)
    assert again.found is False
    assert list(Path(told()[1]).iterdir()) == []


def test_whoever_finds_a_folder_in_use_compiles_for_itself(tmp_path: Path) -> None:
    """Nobody waits: ranks that waited for each other's folders would for ever. Mutant seen to fail: it is used."""
    first = CompileCache(tmp_path, CONTENT)
    beside = CompileCache(tmp_path, CONTENT)
    assert told()[0] == "0"
    beside.keep()
    assert CompileCache(tmp_path, CONTENT).found is False, "only who holds the folder completes it"
    first.keep()
    assert CompileCache(tmp_path, CONTENT).found is True


def test_it_is_in_the_users_cache_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder(None) == tmp_path / "langchain-accel" / "ascend"
    assert folder("elsewhere") == Path("elsewhere")
