"""Teaches stock torch what the vendor's bridge teaches it: to make tensors on `hpu`, and to move them there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ._tensor import HPU, HpuTensor, aten, run

# Factories reach the device without a tensor among their arguments. Those that resize an empty tensor in C++, which a
# wrapper's fixed shape cannot follow, are whole operations here.
_FACTORIES = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace",
    "randperm",
)  # fmt: skip
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
_TYPES = 21
_META, _HPU = 14, 15  # c10::DeviceType

_libraries: list[torch.library.Library] = []  # what they register is there as long as they are


def install() -> None:
    """Register kernels, a device guard, and the few Python functions that would lose the wrapper."""
    operations = torch.library.Library("aten", "IMPL", "HPU")
    for name in _FACTORIES:
        packet, _, overload = name.partition(".")
        operations.impl(name, _factory(getattr(getattr(aten, packet), overload or "default")), "HPU")
    operations.impl(
        "_copy_from", lambda source, target, non_blocking=False: run(aten.copy_.default, (target, source), {}), "HPU"
    )
    operations.impl("_fused_sdp_choice", lambda *_, **__: 0, "HPU")  # the math path, in plain operations
    # C++ code that turns the Python key off (indices in lists, torch.tensor of device scalars) lands on the HPU key.
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(lambda operation, *args, **kwargs: run(operation, args, kwargs), "HPU")
    _libraries.extend((operations, everything))

    # Stock torch has no device guard for hpu; that of `meta`, which does nothing, will do.
    c10 = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * _TYPES).in_dll(c10, _GUARDS)
    guards[_HPU] = guards[_HPU] or guards[_META]

    torch.Tensor.to = _moving(torch.Tensor.to)
    torch.tensor, torch.as_tensor = _making(torch.tensor), _making(torch.as_tensor)
    held = torch._C.TensorBase.data
    torch.Tensor.data = property(
        lambda tensor: HpuTensor(tensor.held.data) if isinstance(tensor, HpuTensor) else held.__get__(tensor),
        lambda tensor, value: _set_data(tensor, value, held),
    )


def _factory(operation: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: run(operation, args, {**kwargs, "device": HPU})


def _indexed(value: Any) -> Any:
    """The guard knows no current device: give `hpu` an index before C++ asks for it."""
    return HPU if isinstance(value, (str, torch.device)) and torch.device(value).type == "hpu" else value


def _moving(to: Any) -> Any:
    def moved(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs:
            kwargs["device"] = _indexed(kwargs["device"])
        return to(self, *map(_indexed, args), **kwargs)

    return moved


def _making(make: Any) -> Any:
    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if isinstance(data, HpuTensor):
            return data.clone().to(device or HPU, *args, **kwargs)
        tensor = make(data, *args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made


def _set_data(tensor: torch.Tensor, value: torch.Tensor, held: Any) -> None:
    """`parameter.data = tensor of the device` would drop the wrapper: swap the whole tensor instead."""
    if not isinstance(value, HpuTensor):
        held.__set__(tensor, value)
        return
    moved: torch.Tensor = HpuTensor(value.held)
    if isinstance(tensor, torch.nn.Parameter):
        moved = torch.nn.Parameter(moved, tensor.requires_grad)
    torch.utils.swap_tensors(tensor, moved)
