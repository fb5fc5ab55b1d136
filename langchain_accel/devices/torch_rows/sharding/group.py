"""The ranks of one model as a process group: they meet at an address, sum tensors, and part."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from datetime import timedelta

import torch
import torch.distributed as dist

from langchain_accel.devices.base import Rank
from langchain_accel.errors import PlanRejected

# How long a rank waits in one collective for the others. Ranks that load at different speeds may be far apart; an idle
# group is in no collective, and a peer that died is noticed by whoever started it.
_PATIENCE = timedelta(minutes=30)
_LOOPBACK = "lo"


class Group:
    """An open process group.

    Attributes:
        rank: this rank.
        reduced_by: what sums tensors, in words.
    """

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.reduced_by = "gloo"
        self._shared: torch._ops.OpOverloadPacket | None = None

    def sum(self, tensor: torch.Tensor) -> None:
        """Sum a contiguous tensor over the ranks, in place, with the same result on each."""
        assert tensor.is_contiguous()  # DeepSpeed's operation would sum a copy and drop it
        if self._shared is not None:
            self._shared(tensor)
        else:
            dist.all_reduce(tensor)

    def agree(self, *, ready: bool) -> bool:
        """Whether all ranks are ready; every rank must ask."""
        flag = torch.tensor([int(ready)])
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag)

    def count(self, names: Collection[str]) -> int:
        """Count the distinct names that the ranks bring along; every rank must ask."""
        text = torch.tensor(list("\n".join(sorted(names)).encode()), dtype=torch.uint8)
        longest = torch.tensor([len(text)])
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        padded = torch.zeros(int(longest), dtype=torch.uint8)
        padded[: len(text)] = text
        gathered = [torch.empty_like(padded) for _ in range(self.rank.size)]
        dist.all_gather(gathered, padded)
        return len({name for each in gathered for name in bytes(each.tolist()).rstrip(b"\0").split(b"\n")})

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier()

    def share_memory(self, operation: torch._ops.OpOverloadPacket) -> None:
        """From now on sum through memory that the ranks share."""
        self._shared = operation
        self.reduced_by = "shared memory"

    def close(self) -> None:
        """Leave the group. Idempotent."""
        self._shared = None
        if dist.is_initialized():
            dist.destroy_process_group()


def join(rank: Rank, backend: str = "gloo", accelerator: str = "cpu") -> Group:
    """Meet the other ranks; returns when all are there.

    Where all ranks are on one machine, every socket is opened on the loopback interface.

    Args:
        rank: with `host:port` where rank 0 listens.
        backend: torch's name of what sums tensors.
        accelerator: DeepSpeed's name of where they are.

    Raises:
        PlanRejected: the address is none.
    """
    host, _, port = rank.address.rpartition(":")
    if not host or not port.isdecimal():
        msg = f"ranks meet at host:port, got {rank.address!r}"
        raise PlanRejected(msg)
    os.environ.update(environment(rank, host, port, accelerator))
    listening = _listen(host, int(port)) if rank.index == 0 else None
    store = dist.TCPStore(
        host,
        int(port),
        rank.size,
        is_master=rank.index == 0,
        timeout=_PATIENCE,
        # torch by itself listens on every interface; it takes the socket over and closes it.
        master_listen_fd=None if listening is None else listening.detach(),
    )
    dist.init_process_group(backend, store=store, rank=rank.index, world_size=rank.size, timeout=_PATIENCE)
    return Group(rank)


def environment(rank: Rank, host: str, port: str, accelerator: str = "cpu") -> dict[str, str]:
    """Return the variables that gloo, DeepSpeed and transformers read in a rank."""
    variables = {
        "RANK": str(rank.index),
        "WORLD_SIZE": str(rank.size),
        "LOCAL_RANK": str(rank.local_index),
        # DeepSpeed takes this for "all ranks are on this machine" where it equals WORLD_SIZE.
        "LOCAL_SIZE": str(rank.local_size),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        "DS_ACCELERATOR": accelerator,
    }
    if rank.local_size == rank.size:
        variables["GLOO_SOCKET_IFNAME"] = _LOOPBACK
    return variables


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening
