"""Tensors on the device, and the stream of operations on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import Self

from ._counters import COUNTERS

HPU = torch.device("hpu:0")
LAZY = os.environ.get("PT_HPU_LAZY_MODE", "0") == "1"
aten = torch.ops.aten
_READ = aten._local_scalar_dense.default
_COPIES = (aten._to_copy.default, aten.copy_.default, _READ)

Operation = tuple[Callable[..., Any], Any, Any, Any]
"""A function, its arguments and keywords in tensors of the host, and what it returned when it was recorded."""


@dataclass
class Stream:
    """Operations that wait to become a recipe, and the recording of a graph, if there is one."""

    pending: list[Any] = field(default_factory=list)
    recording: list[Operation] | None = None

    def mark_step(self) -> None:
        """Let what was gathered run as one recipe."""
        if self.pending:
            COUNTERS.recipes.add(tuple(self.pending))
            COUNTERS.runs += 1
            self.pending = []

    def record(self, operation: Operation, signature: Any) -> None:
        """Take one operation in: into the graph, or into the recipe that is being gathered."""
        if self.recording is not None:
            self.recording.append(operation)
            return
        self.pending.append(signature)
        if not LAZY:
            self.mark_step()


STREAM = Stream()


class HpuTensor(torch.Tensor):
    """A tensor that says it is on `hpu:0`, around the tensor of the host that holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Self:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=HPU
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"hpu:{self.held!r}"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        msg = "can't convert hpu:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory first."
        raise TypeError(msg)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied: torch.Tensor = HpuTensor(self.held.clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch.inference_mode(False):  # wrappers are no inference tensors, whatever mode they are made in
            return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation on the tensors of the host behind the device's, and record it."""
    wrappers = {id(each.held): each for each in tree_leaves((args, kwargs)) if isinstance(each, HpuTensor)}
    if wrappers and function not in _COPIES:
        _refuse_mixing(function, args, kwargs)
    to_device = _result_is_on_device(function, args, kwargs)
    if wrappers and (function is _READ or not to_device):
        COUNTERS.host_reads += 1
        if STREAM.recording is not None:
            msg = f"a tensor of the device is read by the host while an HPU graph is captured ({function})"
            raise RuntimeError(msg)
        STREAM.mark_step()
        COUNTERS.publish()

    args, kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    result = function(*args, **kwargs)
    if to_device and function is not _READ:
        STREAM.record((function, args, kwargs, result), (str(function), _signature(args), _signature(kwargs)))

    def outer(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not to_device:
            return value
        # Operations in place return the tensor they were given.
        return wrappers[id(value)] if id(value) in wrappers else HpuTensor(value)

    return tree_map(outer, result)


def _result_is_on_device(function: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"]).type == "hpu"
    return isinstance(args[0], HpuTensor) if function is aten.copy_.default else True


def _refuse_mixing(function: Any, args: Any, kwargs: dict[str, Any]) -> None:
    for each in tree_leaves((args, kwargs)):
        if isinstance(each, torch.Tensor) and not isinstance(each, HpuTensor) and each.dim() > 0:
            COUNTERS.mixed += 1
            if not LAZY:
                msg = (
                    "Expected all tensors to be on the same device, but found at least two devices, hpu:0 and cpu! "
                    f"({function})"
                )
                raise RuntimeError(msg)


def _inner(value: Any) -> Any:
    if isinstance(value, HpuTensor):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "hpu" else value


def _signature(value: Any) -> Any:
    """What a recipe is compiled for: shapes and dtypes of tensors, values of everything else."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return tuple((name, _signature(each)) for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    return value if isinstance(value, (int, float, bool, str, type(None))) else str(value)
