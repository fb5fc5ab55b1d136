"""HPU graphs: the operations of one forward, recorded once per signature and replayed."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from ._counters import COUNTERS
from ._tensor import LAZY, STREAM, HpuTensor, Operation

_OWNER = threading.local()


def input_hash(inputs: Any) -> int:
    """What a graph is kept under: the shapes and dtypes of tensors, the values of everything else."""
    leaves, tree = tree_flatten(inputs)
    return hash((str(tree), *map(_key, leaves)))


def copy_to(target: Any, source: Any) -> None:
    """Copy the tensors of one structure into those of another one of the same form."""
    for into, value in zip(tree_flatten(target)[0], tree_flatten(source)[0], strict=True):
        if isinstance(into, torch.Tensor) and into is not value:
            into.copy_(value)


@dataclass
class _Graph:
    """A recording, with the buffers it reads its inputs from and those it leaves its outputs in."""

    inputs: Any
    operations: list[Operation]
    outputs: Any

    def replay(self) -> None:
        for function, args, kwargs, recorded in self.operations:
            fresh = tree_flatten(function(*args, **kwargs))[0]
            for old, new in zip(tree_flatten(recorded)[0], fresh, strict=True):
                if isinstance(old, torch.Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


def wrap_in_hpu_graph(
    module: Any,
    asynchronous: bool = False,  # noqa: FBT002  the vendor's signature
    disable_tensor_cache: bool = False,  # noqa: FBT002
    dry_run: bool = False,  # noqa: FBT002
    max_graphs: int | None = None,
) -> Any:
    """Replace a module's forward by one that records and replays; see the folder's own words.

    `bypass_hpu_graphs=True` at a call runs the plain forward. The wrapped module gets `clear_cache()`, which drops its
    graphs, and `clear_inputs()`.
    """
    if not LAZY:
        msg = "HPU graphs need lazy mode: set PT_HPU_LAZY_MODE=1 before habana_frameworks is imported"
        raise RuntimeError(msg)
    forward, graphs = module.forward, dict[int, _Graph]()

    @wraps(forward)
    def wrapped(*args: Any, bypass_hpu_graphs: bool = False, **kwargs: Any) -> Any:
        if STREAM.recording is not None and not getattr(_OWNER, "records", False):
            msg = "another thread captures an HPU graph: one thread at a time may use the device"
            raise RuntimeError(msg)
        key = input_hash((args, kwargs))
        full = max_graphs is not None and key not in graphs and len(graphs) >= max_graphs
        if bypass_hpu_graphs or full or STREAM.recording is not None:  # a graph within a graph is part of it
            COUNTERS.bypasses += 1
            return forward(*args, **kwargs)
        STREAM.mark_step()
        if key not in graphs:
            COUNTERS.captures += 1
            graphs[key] = _capture(forward, args, kwargs)  # which computes as well, and writes in place
            return graphs[key].outputs
        COUNTERS.replays += 1
        copy_to(graphs[key].inputs, (args, kwargs))
        STREAM.mark_step()
        graphs[key].replay()
        return graphs[key].outputs

    module.forward = wrapped
    module.clear_cache = graphs.clear
    module.clear_inputs = lambda: None
    return module


def _capture(forward: Any, args: Any, kwargs: Any) -> _Graph:
    """Record one forward on buffers of its own."""
    leaves, tree = tree_flatten((args, kwargs))
    inputs = tree_unflatten([_buffer(leaf) for leaf in leaves], tree)
    STREAM.mark_step()
    STREAM.recording, _OWNER.records = [], True
    try:
        outputs = forward(*inputs[0], **inputs[1])
        operations = STREAM.recording
    finally:
        STREAM.recording, _OWNER.records = None, False
    return _Graph(inputs, operations, outputs)


def _buffer(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return leaf.clone() if isinstance(leaf, HpuTensor) else leaf.to("hpu")


def _key(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return (tuple(leaf.shape), leaf.dtype)
    return leaf if isinstance(leaf, (int, float, bool, str, type(None))) else id(leaf)
