"""Huawei Ascend: models of mindformers on MindSpore, in a process of their own."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_accel.devices.ascend.configs import PACKED, read_config
from langchain_accel.devices.ascend.options import Options, translated
from langchain_accel.devices.base import Device, Placement, Plan, Progress, Rank, Spec, silent
from langchain_accel.devices.memory import Demand, available, check_memory, even_demand, weight_bytes
from langchain_accel.errors import DeviceUnavailable, PlanRejected

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Options", "demand", "load", "placement"]

_ITEM_BYTES = {"float32": 4, "bfloat16": 2}
_SHORTEST_PREFILL = 16


def placement(plan: Plan, options: Options) -> Placement:
    """One process for each rank, and never this one: MindSpore's settings, logs and threads are a whole process's.

    Raises:
        DeviceUnavailable: no interpreter was given, and this one has no MindSpore.
    """
    from langchain_accel.devices.ascend.cluster import MEETING_SECONDS
    from langchain_accel.devices.ascend.stack import INSTALL

    plan, options = translated(plan, options)
    if options.python is None and find_spec("mindspore") is None:
        msg = f"the ascend device needs MindSpore, which this interpreter does not have. To install: {INSTALL}"
        raise DeviceUnavailable(msg)
    return Placement(
        ranks=plan.tensor_parallel_size,
        isolated=True,
        python=options.python,
        silent_seconds=MEETING_SECONDS if plan.tensor_parallel_size > 1 else None,  # MindSpore waits without Python
        resources=(("CPU", 1.0),) if options.target == "cpu" else (("NPU", 1.0),),
    )


def demand(plan: Plan, config: Mapping[str, Any], *, weights: int, item_bytes: int) -> Demand:
    """Return the memory that each rank of a plan takes, in bytes.

    Args:
        plan: what to load.
        config: the model's, with the defaults of its class filled in.
        weights: bytes of all weights.
        item_bytes: bytes of one number.
    """
    options = plan.options or Options()
    working = options.prefill_chunk * config["vocab_size"] * 4  # a resumed prefill has logits of every token
    ranks = plan.tensor_parallel_size
    return even_demand(config, weights=weights, item_bytes=item_bytes, ranks=ranks, working=working)


def load(plan: Plan, options: Options, rank: Rank = Rank(), progress: Progress = silent) -> Device:  # noqa: B008
    """Load a model folder, or one rank's share of it, onto an NPU, in a process that does nothing else.

    Args:
        plan: what to load.
        options: this device's own settings.
        rank: which of the plan's ranks this process is.
        progress: told about loading and compiling.

    Raises:
        DeviceUnavailable: MindSpore, mindformers, CANN or the NPU is missing.
        ModelRejected: the folder or its architecture cannot be used.
        PlanRejected: the plan cannot be carried out here.
    """
    from langchain_accel.devices.ascend import cache, cluster, stack

    plan, options = translated(plan, options)
    folder = Path(plan.model)
    config = read_config(folder, plan.max_len)
    dtype = _dtype(plan, options)
    packed = config["model_type"] in PACKED or plan.tensor_parallel_size > 1
    _check_ranks(plan, config)
    if options.target == "cpu":
        item_bytes = _ITEM_BYTES[dtype]
        need = demand(plan, config, weights=weight_bytes(folder, item_bytes), item_bytes=item_bytes)
        free = available() // rank.local_size
        check_memory(**asdict(need), rows=plan.rows, max_len=plan.max_len, free=free)
    cluster.join(rank)
    device_id = (options.device_id or 0) + rank.local_index
    stack.require(options.target, device_id, options.max_device_memory)
    from langchain_accel.devices.ascend.blocks import Strips
    from langchain_accel.devices.ascend.device import AscendRows

    strips = Strips.covering(plan.rows, plan.max_len, options.block_size)
    kept = None
    if options.compile_cache:
        kept = cache.CompileCache(cache.folder(options.cache_dir), _content(plan, options, config, rank))
    if options.target == "cpu":
        from langchain_accel.devices.ascend import cpu_operators

        cpu_operators.install(strips)
    settings = stack.context(options.target, device_id, rank, legacy=not packed)
    progress("loading weights", 0, 1)
    if packed:
        from langchain_accel.devices.ascend.mcore import open_packed

        network: Any = open_packed(folder, config, strips, dtype, settings)
    else:
        from langchain_accel.devices.ascend.legacy import open_padded

        network = open_padded(folder, config, strips, dtype, plan.rows)
    progress("loading weights", 1, 1)
    device = AscendRows(network, _spec(plan, options, config["vocab_size"], packed=packed), strips, kept)
    device.compile(progress)
    return device


def _spec(plan: Plan, options: Options, vocab_size: int, *, packed: bool) -> Spec:
    """Return what is served: many shapes where none is compiled, few where each is."""
    from langchain_accel.devices.torch_rows import shapes

    chunk = min(options.prefill_chunk, plan.max_len)
    powers = {2**power for power in range(plan.rows.bit_length())}
    lengths = {length for length in (_SHORTEST_PREFILL, 4 * _SHORTEST_PREFILL, chunk) if length <= chunk}
    several = {(4, _SHORTEST_PREFILL)} if plan.rows >= 4 and chunk >= _SHORTEST_PREFILL else set()  # noqa: PLR2004
    return Spec(
        rows=plan.rows,
        max_len=plan.max_len,
        vocab_size=vocab_size,
        prefill_shapes=shapes.prefill_shapes(plan.rows, chunk)
        if packed
        else tuple(sorted({(1, length) for length in lengths} | several)),
        decode_shapes=shapes.decode_shapes(plan.rows) if packed else tuple(sorted(powers | {plan.rows})),
        resumes=True,
        copies=True,
    )


def _dtype(plan: Plan, options: Options) -> str:
    """Return the dtype to compute in.

    Raises:
        PlanRejected: the target has no kernels for the one that is asked for.
    """
    only = "float32" if options.target == "cpu" else "bfloat16"
    if plan.dtype not in ("auto", only):
        msg = f"dtype={plan.dtype!r} has no kernels on target={options.target!r}; set dtype={only!r}, or leave it out"
        raise PlanRejected(msg)
    return only


def _check_ranks(plan: Plan, config: Mapping[str, Any]) -> None:
    """Refuse ranks that cannot share a model.

    Raises:
        PlanRejected: says which numbers of ranks can.
    """
    ranks = plan.tensor_parallel_size
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    if heads % ranks or (kv_heads % ranks and ranks % kv_heads) or config["vocab_size"] % ranks:
        msg = (
            f"tensor_parallel_size={ranks} cannot share {heads} heads, {kv_heads} KV heads and a vocabulary of "
            f"{config['vocab_size']} evenly; choose a number that divides them"
        )
        raise PlanRejected(msg)


def _content(plan: Plan, options: Options, config: Mapping[str, Any], rank: Rank) -> dict[str, Any]:
    """Return everything that compiled graphs follow from, as JSON: this device's own code is part of it."""
    from langchain_accel.devices.ascend import stack

    sources = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    return {
        "config": dict(config),
        "rows": plan.rows,
        "max_len": plan.max_len,
        "rank": [rank.index, rank.size],
        "block_size": options.block_size,
        "prefill_chunk": options.prefill_chunk,
        "target": options.target,
        "cann": os.environ.get("ASCEND_HOME_PATH", ""),
        "code": hashlib.sha256(sources).hexdigest(),
        **stack.versions(),
    }
