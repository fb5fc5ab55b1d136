"""When ranks sum through shared memory, and what stays behind when they do."""

from __future__ import annotations

import fcntl
import threading
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

from langchain_accel.devices import xeon
from langchain_accel.devices.base import Rank
from langchain_accel.devices.torch_rows.sharding import shared_memory
from langchain_accel.devices.torch_rows.sharding.group import environment
from tests.sharding.helpers import alone, together
from tests.tiny_models import make

BOTH = Rank(0, 2, 0, 2, "127.0.0.1:4000")


@pytest.fixture
def equipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with compiler, ninja and DeepSpeed."""
    monkeypatch.setattr(shared_memory, "find_spec", lambda _name: object())
    monkeypatch.setattr(shared_memory.shutil, "which", lambda name: name)


@pytest.mark.usefixtures("equipped")
class TestRefusal:
    def test_none(self, tmp_path: Path) -> None:
        assert shared_memory.refusal(BOTH, 2, tmp_path) == ""

    def test_several_machines(self, tmp_path: Path) -> None:
        """The operation would crash there: https://github.com/deepspeedai/DeepSpeed/issues/7625."""
        assert "several machines" in shared_memory.refusal(Rank(0, 2, 0, 1, "10.0.0.1:4000"), 2, tmp_path)

    def test_fewer_cores_than_ranks(self, tmp_path: Path) -> None:
        assert "2 ranks share 1 cores" in shared_memory.refusal(BOTH, 1, tmp_path)

    def test_a_small_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A container's default is 64 MiB: the first touch past it would kill the rank."""
        monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
        assert "64 MiB left and the ranks need" in shared_memory.refusal(BOTH, 2, tmp_path)

    def test_no_folder(self, tmp_path: Path) -> None:
        assert "there is no" in shared_memory.refusal(BOTH, 2, tmp_path / "shm")

    def test_no_compiler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shared_memory.shutil, "which", lambda _name: None)
        assert "no C++ compiler" in shared_memory.refusal(BOTH, 2, tmp_path)

    def test_no_deepspeed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shared_memory, "find_spec", lambda _name: None)
        assert shared_memory.refusal(BOTH, 2, tmp_path) == "DeepSpeed is not installed"


def test_only_one_builds(tmp_path: Path) -> None:
    """The second waits until the first lets go. Mutant seen to fail: a shared lock."""
    entered = threading.Event()

    def second() -> None:
        with shared_memory._locked(tmp_path):
            entered.set()

    with shared_memory._locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        with (tmp_path / "in-use").open("w") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not entered.is_set()
    thread.join(30)
    assert entered.is_set()


def test_what_ranks_read_from_their_environment() -> None:
    """Loopback only where all ranks are on one machine; DeepSpeed takes LOCAL_SIZE == WORLD_SIZE for that."""
    local = environment(Rank(1, 2, 1, 2), "127.0.0.1", "4000")
    assert local["GLOO_SOCKET_IFNAME"] == "lo"
    assert (local["RANK"], local["LOCAL_SIZE"], local["WORLD_SIZE"]) == ("1", "2", "2")
    apart = environment(Rank(1, 2, 0, 1), "10.0.0.1", "4000")
    assert "GLOO_SOCKET_IFNAME" not in apart
    assert apart["LOCAL_SIZE"] == "1"


def built() -> bool:
    return find_spec("deepspeed") is not None and any((shared_memory._cache() / shared_memory._OPERATION).glob("*.so"))


@pytest.mark.skipif(not built(), reason="DeepSpeed's operation is not in the cache; building it takes minutes")
def test_ranks_sum_through_shared_memory_and_leave_nothing(tmp_path: Path) -> None:
    """The operation is really in use, and its segments have no names once the ranks are ready."""
    options = xeon.Options(threads=1, prefill_chunk=32)
    folder = make("phi3", tmp_path / "phi3")
    before = set(Path("/dev/shm").iterdir())
    told: list[str] = []
    one, two = alone(folder), together(folder, lambda stage, *_: told.append(stage), options=options)
    try:
        assert "building the all-reduce" in told
        assert not [note for note in told if "gloo" in note]
        assert not {path for path in set(Path("/dev/shm").iterdir()) - before if "deepspeed" in path.name}
        tokens, zero = np.arange(3, 19)[None], np.zeros(1, np.int64)
        expected = one.prefill(tokens, np.array([16]), zero, zero).copy()
        np.testing.assert_allclose(two.prefill(tokens, np.array([16]), zero, zero), expected, atol=1e-3)
    finally:
        one.close()
        two.close()
