"""A folder of exported models, keyed by everything their content follows from; safe between processes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langchain_accel.devices import folders

_BLOCK = 2**22
_SHA256 = re.compile(r"[0-9a-f]{64}")
_POLL_SECONDS = 0.5
_KEY_DIGITS = 32


def folder(cache_dir: str | None) -> Path:
    """Return the cache's folder: the given one, else `langchain-accel/neuron` in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "langchain-accel" / "neuron"


def key(content: Mapping[str, Any]) -> str:
    """Return the name of the entry for this content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def digests(source: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a model folder that an export reads.

    Files of the hub's cache are links to blobs named by that digest; others are read, at the speed of the disk.
    """
    found = {}
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in {".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken"}:
            blob = file.resolve()
            in_hub_cache = file.is_symlink() and blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name)
            found[file.name] = blob.name if in_hub_cache else _sha256(file)
    return found


def find_or_make(root: Path, name: str, make: Callable[[Path], None], waiting: Callable[[], None]) -> Path:
    """Return the entry of this name, making it first if need be: once, however many processes ask.

    An entry appears whole, by a rename: what was being made when a process died is never taken for an entry.

    Args:
        root: the cache's folder; made if absent.
        name: of the entry.
        make: fills the empty folder it is given.
        waiting: called now and then while another process makes the entry.
    """
    entry = root / name
    if entry.is_dir():
        return entry
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / f"{name}.lock", waiting):
        if entry.is_dir():
            return entry
        for remains in root.glob(f"{name}.*.partial"):
            shutil.rmtree(remains, ignore_errors=True)
        folders.make_whole(entry, make)
    return entry


@contextmanager
def locked(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that the kernel releases when its process ends, however it ends."""
    with file.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(_POLL_SECONDS)
        yield


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
