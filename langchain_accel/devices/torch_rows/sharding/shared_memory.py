"""DeepSpeed's all-reduce through shared memory: built once, used where all ranks are on one machine, and left no trace.

It is compiled when first needed, takes a minute or so, and stays in the user's cache.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from langchain_accel.devices.base import Progress, Rank
from langchain_accel.devices.torch_rows.sharding.group import Group

_SEGMENT = 68 * 2**20  # bytes per rank: 2 x 1 MiB and 2 x 32 MiB of buffers, and room to spare
_FOLDER = Path("/dev/shm")  # noqa: S108  where the operation puts its segments
_OPERATION = "deepspeed_shm_comm"


def use(group: Group, cores: int, progress: Progress) -> str:
    """Sum through shared memory if every rank can; every rank must call this.

    Args:
        group: open group; changed.
        cores: physical cores that the ranks of this machine share.
        progress: told about building.

    Returns:
        Why gloo is used, or nothing.
    """
    rank = group.rank
    reason = refusal(rank, cores)
    module = None
    if not reason:
        progress("building the all-reduce", 0, 1)
        try:
            module = _build()
        except Exception as error:  # noqa: BLE001  whatever a compiler may do wrong, there is gloo
            reason = f"DeepSpeed's shared memory operation was not built: {str(error).strip().splitlines()[0]}"
        progress("building the all-reduce", 1, 1)
    if not group.agree(ready=module is not None):
        return reason or "another rank cannot use shared memory"
    assert module is not None
    segment = _segment(rank)
    segment.unlink(missing_ok=True)  # of a group that was killed before it came this far, at the same port
    group.barrier()
    module.initialize(rank.size, rank.index)
    group.barrier()
    # The name has done its duty: every rank has mapped it. DeepSpeed never removes it.
    segment.unlink(missing_ok=True)
    group.share_memory(torch.ops.deepspeed.inference_all_reduce_)
    return ""


def refusal(rank: Rank, cores: int, folder: Path = _FOLDER) -> str:
    """Return why shared memory is out of the question for these ranks; empty where it is not.

    Args:
        rank: one of them.
        cores: physical cores they have on this machine.
        folder: where segments are made.
    """
    return next(_obstacles(rank, cores, folder), "")


def _obstacles(rank: Rank, cores: int, folder: Path) -> Iterator[str]:
    if rank.local_size != rank.size:
        yield "the ranks are on several machines"
    if cores < rank.local_size:
        yield f"{rank.local_size} ranks share {cores} cores, and a rank that waits keeps its core busy"
    if find_spec("deepspeed") is None:
        yield "DeepSpeed is not installed"
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        yield "there is no C++ compiler"
    if find_spec("ninja") is None and shutil.which("ninja") is None:
        yield "there is no ninja: pip install ninja"
    if not folder.is_dir():
        yield f"there is no {folder}"
    elif (room := shutil.disk_usage(folder).free) < rank.local_size * _SEGMENT:
        wanted = rank.local_size * _SEGMENT // 2**20
        yield f"{folder} has {room // 2**20} MiB left and the ranks need {wanted} (docker run --shm-size)"


def _build() -> Any:
    """Load the operation, compiling it first where the cache has none."""
    with _locked(_cache()) as folder:
        # torch's own lock is a file that a killed process leaves behind, and whoever finds it waits for ever. Nobody
        # else works in this folder, and we hold it.
        (folder / _OPERATION / "lock").unlink(missing_ok=True)
        os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        with redirect_stdout(sys.stderr):
            return ShareMemCommBuilder().jit_load(verbose=False)


def _cache() -> Path:
    """Return the folder of this combination of versions: another one would compile in each other's place."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    tag = f"py{sys.version_info.major}{sys.version_info.minor}-torch{version('torch')}-deepspeed{version('deepspeed')}"
    return Path(home) / "langchain-accel" / "extensions" / tag


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Hold a folder alone: the kernel lets go of the lock when its holder ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "in-use").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


def _segment(rank: Rank) -> Path:
    host, _, port = rank.address.rpartition(":")
    return _FOLDER / f"deepspeed_allreduce_buffer_{os.getuid()}_{host}_{port}_{rank.index}"
