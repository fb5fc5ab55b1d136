"""Exported models are kept by content, whole or not at all, and made once; no Neuron package is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from langchain_accel.devices.inferentia import cache

ROOT = Path(__file__).resolve().parents[2]


def nobody() -> None:
    pytest.fail("nobody else is at work")


def test_the_key_follows_from_all_of_the_content() -> None:
    one = {"model": {"config.json": "a"}, "compiled": {"rows": 4, "max_len": 128}}
    same = {"compiled": {"max_len": 128, "rows": 4}, "model": {"config.json": "a"}}
    other = {"model": {"config.json": "a"}, "compiled": {"rows": 4, "max_len": 129}}
    assert cache.key(one) == cache.key(same) != cache.key(other)


def test_digests_follow_the_content_and_not_names_of_folders_or_times(tmp_path: Path) -> None:
    """Mutant: size and time stand for the content; a weight that changes in place is not seen."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "readme.md").write_text(name)
    assert cache.digests(tmp_path / "one") == cache.digests(tmp_path / "two")
    before = (tmp_path / "two" / "model.safetensors").stat()
    (tmp_path / "two" / "model.safetensors").write_bytes(b"WEIGHTS")
    os.utime(tmp_path / "two" / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.digests(tmp_path / "one") != cache.digests(tmp_path / "two")


def test_blobs_of_the_hubs_cache_are_known_by_their_names(tmp_path: Path) -> None:
    """A hub's weight file is a link to a blob named by its SHA-256, which need not be read again."""
    name = "ab" * 32
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / name).write_bytes(b"anything")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blobs" / name)
    assert cache.digests(snapshot) == {"model.safetensors": name}


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "graphs").write_text("compiled")

    entries = [cache.find_or_make(tmp_path / "root", "key", make, nobody) for _ in range(2)]
    assert entries[0] == entries[1] == tmp_path / "root" / "key"
    assert (entries[0] / "graphs").read_text() == "compiled"
    assert len(made) == 1


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """Mutant: the entry itself is filled; what broke off half-way is found by the next one."""

    def breaks(folder: Path) -> None:
        (folder / "half").write_text("of it")
        msg = "the compiler gave up"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="gave up"):
        cache.find_or_make(tmp_path, "key", breaks, nobody)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]
    assert cache.find_or_make(tmp_path, "key", lambda folder: None, nobody).is_dir()


KILLED = """
import os, sys
from pathlib import Path
from langchain_accel.devices.inferentia import cache

def make(folder):
    (folder / "half").write_text("of it")
    os._exit(9)
cache.find_or_make(Path(sys.argv[1]), "key", make, lambda: None)
"""


def test_remains_of_a_killed_process_are_swept_and_its_lock_is_free(tmp_path: Path) -> None:
    """Mutant: a lock that is a file which exists; the killed one's is never taken away."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, check=False, timeout=60)
    assert killed.returncode == 9
    assert len(list(tmp_path.glob("key.*.partial"))) == 1
    entry = cache.find_or_make(tmp_path, "key", lambda folder: None, nobody)
    assert entry.is_dir()
    assert not list(tmp_path.glob("*.partial"))


MAKER = """
import sys, time
from pathlib import Path
from langchain_accel.devices.inferentia import cache

root, waited = Path(sys.argv[1]), []
def make(folder):
    with (root / "made").open("a") as file:
        file.write("x")
    (folder / "first").write_text("")
    while len(list(root.glob("*.ready"))) < 3:
        time.sleep(0.02)
    (folder / "last").write_text("")
(root / f"{sys.argv[2]}.ready").write_text("")
entry = cache.find_or_make(root, "key", make, lambda: waited.append(1))
assert (entry / "first").exists() and (entry / "last").exists()
"""


def test_three_processes_that_ask_at_once_make_one_entry(tmp_path: Path) -> None:
    """The one that makes it finishes only when all three have asked.

    Mutant: no lock; each process makes its own, and two fail to put theirs in place.
    """
    asking = [
        subprocess.Popen([sys.executable, "-c", MAKER, str(tmp_path), str(index)], cwd=ROOT) for index in range(3)
    ]
    assert [process.wait(timeout=60) for process in asking] == [0, 0, 0]
    assert (tmp_path / "made").read_text() == "x"


def test_the_users_cache_folder_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder(None) == tmp_path / "langchain-accel" / "neuron"
    assert cache.folder("~/models") == Path("~/models").expanduser()
