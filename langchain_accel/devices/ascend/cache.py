"""Compiled graphs on disk: a folder for everything that their content follows from, used by one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KEY_DIGITS = 32
_ENABLE, _PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"


class CompileCache:
    """A process's hold on the folder where MindSpore keeps, and finds, its compiled graphs.

    MindSpore checks that its own version and the scripts are the same, not that the model is, nor that a folder is
    whole: so each model, plan and rank has a folder of its own, one that was not completed is emptied, and a process
    that finds its folder in use compiles for itself instead of waiting.

    Attributes:
        found: whether the folder held graphs already.
    """

    def __init__(self, root: Path, content: Mapping[str, Any]) -> None:
        """Take the folder for `content`, and tell MindSpore, which has compiled nothing yet.

        Args:
            root: the folder of all graphs; made if absent.
            content: everything that graphs follow from, as JSON.
        """
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        folder = root / hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]
        root.mkdir(parents=True, exist_ok=True)
        self._lock = folder.with_suffix(".lock").open("a")
        self._whole = folder / "whole"
        self.found = False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.environ[_ENABLE] = "0"
            self.close()
            return
        self.found = self._whole.exists()
        if not self.found:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        os.environ |= {_ENABLE: "1", _PATH: str(folder)}

    def keep(self) -> None:
        """Every graph is compiled: the folder is whole, and others may use it."""
        if not self._lock.closed:
            self._whole.touch()
            self.close()

    def close(self) -> None:
        """Let go of the folder. Idempotent."""
        self._lock.close()


def folder(cache_dir: str | None) -> Path:
    """Return the folder of all graphs: the given one, else `langchain-accel/ascend` in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "langchain-accel" / "ascend"
