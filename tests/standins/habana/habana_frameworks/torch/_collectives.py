"""The `hccl` process group, over gloo."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

from ._counters import COUNTERS
from ._tensor import STREAM, HpuTensor


class Hccl(dist.ProcessGroup):
    """Collectives on tensors of the device; inside an HPU graph they are recorded with the operations around them."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self.gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def _run(self, name: str, *args: Any) -> Any:
        args = tuple(_inner(each) for each in args)
        COUNTERS.collectives[name] += 1
        if STREAM.recording is not None:
            if os.environ.get("PT_HPU_ENABLE_LAZY_COLLECTIVES", "false").lower() not in ("1", "true"):
                msg = "a collective in an HPU graph needs PT_HPU_ENABLE_LAZY_COLLECTIVES=true"
                raise RuntimeError(msg)
            STREAM.recording.append((lambda *again: getattr(self.gloo, name)(*again).wait() and None, args, {}, None))
        else:
            STREAM.mark_step()
        return getattr(self.gloo, name)(*args)

    def getBackendName(self) -> str:  # noqa: N802  torch's name
        return "hccl"

    def allreduce(self, tensors: Any, *options: Any) -> Any:
        return self._run("allreduce", tensors, *options)

    def broadcast(self, tensors: Any, *options: Any) -> Any:
        return self._run("broadcast", tensors, *options)

    def allgather(self, outputs: Any, tensors: Any, *options: Any) -> Any:
        return self._run("allgather", outputs, tensors, *options)

    def barrier(self, *_: Any) -> Any:
        return self.gloo.barrier()


def _inner(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_inner(each) for each in value]
    return value.held if isinstance(value, HpuTensor) else value


dist.Backend.register_backend("hccl", Hccl, devices=["hpu", "cpu"])
