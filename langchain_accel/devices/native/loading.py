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
    threads: int,
    progress: Progress,
    on_close: Callable[[], object] = lambda: None,
) -> NativeDevice:
    """Load a model that the kernels express.

    Args:
        plan: what to load.
        serves: what the device is to serve.
        config: the model's, as transformers read it.
        threads: that share packing and each step.
        progress: told about loading, packing and checking.
        on_close: called once when the device closes.

    Raises:
        ModelRejected: the files cannot be used, or the kernels compute other logits than the model.
    """
    folder = Path(plan.model)
    model = packed.read(folder) if packed.holds(folder) else pack(plan, config, threads, progress)
    opened = model.open(plan.rows, plan.max_len, members.cache_dtype(plan.dtype), threads)
    device = NativeDevice(opened, serves, on_close)
    progress("checking the model", 0, 1)
    name, prompt = config.model_type, selfcheck.probe(serves.vocab_size, serves.max_len)
    actual = selfcheck.run(name, device, prompt)
    selfcheck.compare(name, actual, model.arrays["expected"][: len(prompt)], selfcheck.INT8)
    progress("checking the model", 1, 1)
    return device


def pack(plan: Plan, config: Any, threads: int, progress: Progress) -> packed.Packed:
    """Load a model folder with transformers and round its products to 8 bits.

    Raises:
        ModelRejected: the files cannot be used.
    """
    import torch

    from langchain_accel.devices.native import packing
    from langchain_accel.devices.torch_rows import loading
    from langchain_accel.devices.torch_rows.proof import plain_logits

    folder = Path(plan.model)
    progress("loading weights", 0, 1)
    dtype = torch.bfloat16 if held_dtype(folder) == "bfloat16" else torch.float32
    model = loading.load_model(folder, config, dtype, trust_remote_code=plan.trust_remote_code)
    progress("loading weights", 1, 1)
    expected = plain_logits(model, selfcheck.probe(config.vocab_size, config.max_position_embeddings))
    return packing.pack(model, expected, threads, progress)
