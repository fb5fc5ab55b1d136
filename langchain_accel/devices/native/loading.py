"""From a model folder, exported or not, to a device that has proven to compute the model's logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_accel.devices import selfcheck
from langchain_accel.devices.base import Plan, Progress, Spec
from langchain_accel.devices.memory import held_dtype
from langchain_accel.devices.native import members, packed
from langchain_accel.devices.native.device import NativeDevice


def open_device(
    plan: Plan,
    serves: Spec,
    config: Any,
    weights: str,
    kv_cache: str,
    threads: int,
    progress: Progress,
    on_close: Callable[[], object] = lambda: None,
) -> NativeDevice:
    """Load a model that the kernels express.

    Args:
        plan: what to load; its dtype is settled where weights are exact.
        serves: what the device is to serve.
        config: the model's, as transformers read it.
        weights: `"exact"`, `"int8"` or `"int4"`; a folder that was exported says so itself.
        kv_cache: `"auto"` or `"int8"`.
        threads: that share packing and each step.
        progress: told about loading, packing and checking.
        on_close: called once when the device closes.

    Raises:
        ModelRejected: the files cannot be used, or the kernels compute other logits than the model.
    """
    folder = Path(plan.model)
    model = packed.read(folder) if packed.holds(folder) else pack(plan, config, weights, threads, progress)
    cache = members.cache_dtype(plan.dtype, kv_cache)
    opened = model.open(plan.rows, plan.max_len, cache, threads)
    device = NativeDevice(opened, serves, on_close)
    progress("checking the model", 0, 1)
    name, prompt = config.model_type, selfcheck.probe(serves.vocab_size, serves.max_len)
    actual = selfcheck.run(name, device, prompt)
    selfcheck.compare(name, actual, model.arrays["expected"][: len(prompt)], _tolerance(model, cache))
    progress("checking the model", 1, 1)
    return device


def pack(plan: Plan, config: Any, weights: str, threads: int, progress: Progress) -> packed.Packed:
    """Load a model folder with transformers and lay its products out for the kernels.

    Args:
        plan: what to load; for exact weights its dtype is `"float32"` or `"bfloat16"`.
        config: the model's, as transformers read it.
        weights: `"exact"`, `"int8"` or `"int4"`.
        threads: that share the packing.
        progress: told about each stage.

    Raises:
        ModelRejected: the files cannot be used.
    """
    import torch

    from langchain_accel.devices.native import calibration, packing
    from langchain_accel.devices.torch_rows import loading
    from langchain_accel.devices.torch_rows.positions import position_limit
    from langchain_accel.devices.torch_rows.proof import plain_logits

    folder = Path(plan.model)
    progress("loading weights", 0, 1)
    held = torch.bfloat16 if held_dtype(folder) == "bfloat16" else torch.float32
    dtype = held
    if weights == "exact":
        dtype = getattr(torch, plan.dtype)  # that of the model which the kernels are held against
        held = torch.bfloat16 if dtype is torch.bfloat16 else held
    model = loading.load_model(folder, config, dtype, trust_remote_code=plan.trust_remote_code)
    progress("loading weights", 1, 1)
    limit, _ = position_limit(config)
    expected = plain_logits(model, selfcheck.probe(config.vocab_size, limit))
    seen = calibration.Seen({}, {})
    if weights != "exact":
        progress("reading a text to see what rounding would change", 0, 1)
        tokens, products = calibration.tokens_of(folder, config.vocab_size), list(packing.products(model))
        seen = calibration.look(model, products, tokens, weights)
    return packing.pack(model, held, expected, weights, seen, threads, progress)


def _tolerance(model: packed.Packed, cache: str) -> selfcheck.Tolerance:
    """Return how far the kernels may be off the model."""
    if model.weights == "int4":
        return selfcheck.INT4
    if model.weights == "int8" or cache == "int8":
        return selfcheck.INT8
    return selfcheck.BFLOAT16 if cache == "bfloat16" else selfcheck.FLOAT32
