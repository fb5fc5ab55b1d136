"""Stand-in of the vendor's bridge between torch and the device; see the folder `tests/standins/habana`.

The modules of the public interface that inference with optimum-habana imports are made here, from the parts beside.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from typing import Any

import torch
from typing_extensions import Self

from . import _collectives as _collectives  # registers the backend
from . import _device
from ._compile import compile_for_hpu
from ._counters import COUNTERS
from ._graphs import copy_to, input_hash, wrap_in_hpu_graph
from ._kernels import FusedRMSNorm, FusedSDPA, RotaryPosEmbeddingHelperV2
from ._tensor import LAZY, STREAM

__all__ = ["COUNTERS", "LAZY"]


class Stream:
    """A stream, an event, or a context of the device: there is one order of things here."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.record_event = self.wait_event = self.wait_stream = lambda *_: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def synchronize(self) -> None:
        STREAM.mark_step()


def _module(name: str, **content: Any) -> types.ModuleType:
    full = f"{__name__}.{name}"
    made = types.ModuleType(full)
    made.__spec__ = importlib.machinery.ModuleSpec(full, None, is_package=True)
    made.__path__ = []
    made.__dict__.update(content)
    sys.modules[full] = made
    parent, _, child = full.rpartition(".")
    setattr(sys.modules[parent], child, made)
    return made


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _synchronize(device: object = None) -> None:
    STREAM.mark_step()


def _ranks(**_: Any) -> tuple[int, ...]:
    return tuple(
        int(os.environ.get(name, least)) for name, least in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )


_device.install()
torch.compile = compile_for_hpu
core = _module("core", mark_step=lambda *_, **__: STREAM.mark_step())
for _name in ("hpu_set_env", "hpu_inference_set_env", "hpu_initialize", "hpu_inference_initialize"):
    setattr(core, _name, _nothing)
hpu = _module(
    "hpu",
    Event=Stream,
    Stream=Stream,
    _is_in_bad_fork=lambda: False,
    _lazy_init=_nothing,
    current_device=lambda: 0,
    current_stream=Stream,
    default_stream=Stream,
    device=Stream,
    device_count=lambda: int(os.environ.get("HABANA_STANDIN_DEVICES", "1")),
    enable_const_section_serialization=_nothing,
    get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16],
    get_autocast_hpu_dtype=lambda: torch.bfloat16,
    get_device_name=lambda device=None: "GAUDI2",
    get_rng_state=lambda device=None: torch.get_rng_state(),
    init=_nothing,
    is_autocast_hpu_enabled=lambda: False,
    is_available=lambda: hpu.device_count() > 0,
    is_bf16_supported=lambda: True,
    is_initialized=lambda: True,
    manual_seed=torch.manual_seed,
    manual_seed_all=_nothing,
    max_memory_allocated=lambda device=None: 0,
    mem_get_info=lambda device=None: (96 << 30, 96 << 30),
    memory_allocated=lambda device=None: 0,
    memory_stats=lambda device=None: {"InUse": 0, "MaxInUse": 0, "Limit": 96 << 30},
    reset_peak_memory_stats=_nothing,
    sdp_kernel=Stream,
    set_device=_nothing,
    set_rng_state=lambda state, device=None: torch.set_rng_state(state.cpu()),
    stream=lambda stream: stream,
    synchronize=_synchronize,
    wrap_in_hpu_graph=wrap_in_hpu_graph,
)
core.hpu = hpu
_module("hpu.graphs", input_hash=input_hash, copy_to=copy_to, wrap_in_hpu_graph=wrap_in_hpu_graph)
_module(
    "hpu.random",
    get_rng_state=hpu.get_rng_state,
    initial_seed=torch.initial_seed,
    manual_seed=_nothing,
    manual_seed_all=_nothing,
    set_rng_state=hpu.set_rng_state,
)
_module("hpu.metrics", metric_global=_nothing)
_module("hpex")
_module(
    "hpex.kernels",
    FusedSDPA=FusedSDPA,
    RotaryPosEmbeddingHelperV2=RotaryPosEmbeddingHelperV2,
    RotaryPosEmbeddingMode=types.SimpleNamespace(BLOCKWISE=0, PAIRWISE=1),
)
_module("hpex.normalization", FusedRMSNorm=FusedRMSNorm)
_module("utils")
_module(
    "utils.experimental",
    _get_device_type=lambda: 2,
    _is_fp16_supported=lambda: True,
    hpu=hpu,
    synDeviceType=types.SimpleNamespace(synDeviceGaudi=1, synDeviceGaudi2=2, synDeviceGaudi3=3),
)
_module("utils.internal", is_lazy=lambda: LAZY)
_module("distributed")
_module("distributed.hccl", initialize_distributed_hpu=_ranks)
torch.hpu = hpu
sys.modules["torch.hpu"] = hpu
