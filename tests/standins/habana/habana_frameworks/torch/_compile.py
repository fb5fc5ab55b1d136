"""`torch.compile(backend="hpu_backend")`: counts a compilation per signature, and runs the operations one by one."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch

from ._counters import COUNTERS
from ._graphs import input_hash
from ._tensor import LAZY

_compile = torch.compile


def compile_for_hpu(model: Any = None, *, backend: str = "inductor", **keywords: Any) -> Any:
    """As `torch.compile`, with one more backend."""
    if backend != "hpu_backend":
        return _compile(model, backend=backend, **keywords)
    if model is None:
        return lambda each: compile_for_hpu(each, backend=backend, **keywords)
    if LAZY:
        msg = "torch.compile with hpu_backend needs eager mode: set PT_HPU_LAZY_MODE=0"
        raise RuntimeError(msg)
    forward, seen = getattr(model, "forward", model), set[int]()

    @wraps(forward)
    def compiled(*args: Any, **kwargs: Any) -> Any:
        key = input_hash((args, kwargs))
        COUNTERS.compilations += key not in seen
        seen.add(key)
        return forward(*args, **kwargs)

    if not isinstance(model, torch.nn.Module):
        return compiled
    model.forward = compiled
    return model
