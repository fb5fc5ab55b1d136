"""Xeon and other CPUs: a transformers model in torch, its KV cache in our own arena."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_accel.devices.base import Device, Placement, Plan, Progress, Rank, Spec, silent
from langchain_accel.devices.memory import Demand, available, check_memory, even_demand, weight_bytes
from langchain_accel.devices.native import members, packed
from langchain_accel.devices.processors import cores, cpu_flags, fastest_dtype, siblings
from langchain_accel.devices.xeon_options import Options
from langchain_accel.errors import DeviceUnavailable, ModelRejected, PlanRejected

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_accel.devices.torch_rows.sharding.strategy import Strategy

__all__ = ["Options", "demand", "load", "placement", "spec"]

_DRAFTS = 16
_STEP_BYTES = 64 * 2**20  # a step's activations beside its logits: tens of MiB at the default chunk


def placement(plan: Plan, options: Options) -> Placement:
    """Return the processes a plan runs in: this one for one rank, one process per rank for several.

    Raises:
        PlanRejected: the ranks cannot share the model's heads evenly, or its weights are to be quantised.
        ModelRejected: nothing here shards this architecture.
        DeviceUnavailable: what shards it is not installed.
    """
    if plan.tensor_parallel_size == 1:
        return Placement()
    if _rounds(plan, options):
        msg = (
            f"rounded weights are served by one rank, and the plan asks for {plan.tensor_parallel_size}: set "
            "tensor_parallel_size=1, or give a model with its exact weights and leave weights out"
        )
        raise PlanRejected(msg)
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise DeviceUnavailable(_missing(", ".join(missing)))
    from transformers import AutoConfig  # and no torch: this process serves, it does not compute

    where = Placement(ranks=plan.tensor_parallel_size, environment=(("DS_ACCELERATOR", "cpu"),), pinned=True)
    try:
        config = AutoConfig.from_pretrained(plan.model, local_files_only=True, trust_remote_code=plan.trust_remote_code)
    except Exception:  # noqa: BLE001  the ranks say what is wrong with the folder
        return where
    _strategy(config, plan)
    return where


def spec(plan: Plan, options: Options, vocab_size: int) -> Spec:
    """Return what this device serves of a plan."""
    from langchain_accel.devices.torch_rows import shapes

    return Spec(
        rows=plan.rows,
        max_len=plan.max_len,
        vocab_size=vocab_size,
        prefill_shapes=shapes.prefill_shapes(plan.rows, min(options.prefill_chunk, plan.max_len)),
        decode_shapes=shapes.decode_shapes(plan.rows),
        resumes=True,
        copies=True,
        drafts=_DRAFTS,
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
    if _for_kernels(plan, options) and members.unusable(config) is None:
        return _native_demand(plan, options, config)
    if _cache_dtype(plan, options) == "bfloat16":
        item_bytes = 2  # of keys and values, whatever the model is computed in
    return _torch_demand(plan, config, weights=weights, item_bytes=item_bytes)


def _rounds(plan: Plan, options: Options) -> bool:
    """Whether weights are rounded: because that is asked for, or because the folder holds no others."""
    return options.weights != "exact" or packed.holds(Path(plan.model))


def _for_kernels(plan: Plan, options: Options) -> bool:
    """Whether the kernels are to serve a plan if they can."""
    return options.kernels and plan.tensor_parallel_size == 1


def _settled(plan: Plan, options: Options) -> str:
    """Return the dtype of a plan: what exact weights are computed in; beside rounded ones, what it asks for."""
    return plan.dtype if _rounds(plan, options) else dtype_of(plan)


def _cache_dtype(plan: Plan, options: Options) -> str:
    """Return the dtype of keys and values in torch's steps: the kernels', where these attend to them."""
    native = _rounds(plan, options) and options.kernels and members.absent() is None
    return members.cache_dtype(plan.dtype, "auto") if native else dtype_of(plan)


def _torch_demand(plan: Plan, config: Mapping[str, Any], *, weights: int, item_bytes: int) -> Demand:
    ranks = plan.tensor_parallel_size
    working = _working(plan, config)
    return even_demand(config, weights=weights, item_bytes=item_bytes, ranks=ranks, working=working)


def _native_demand(plan: Plan, options: Options, config: Mapping[str, Any]) -> Demand:
    exported, dtype = packed.holds(Path(plan.model)), _settled(plan, options)
    held = {**config, "dtype": dtype} if dtype == "bfloat16" and options.weights == "exact" else config
    weights = packed.size(Path(plan.model)) if exported else members.weight_bytes(held, options.weights)
    column = members.cache_bytes(config, dtype, options.kv_cache)
    return Demand(weights, column, _working(plan, config))


def _working(plan: Plan, config: Mapping[str, Any]) -> int:
    return _STEP_BYTES + plan.rows * (_DRAFTS + 1) * int(config["vocab_size"]) * 4


def dtype_of(plan: Plan) -> str:
    """Return the dtype a plan is computed in here: what it asks for, or what this processor is fast at."""
    return plan.dtype if plan.dtype != "auto" else fastest_dtype(cpu_flags())


def load(plan: Plan, options: Options, rank: Rank = Rank(), progress: Progress = silent) -> Device:  # noqa: B008
    """Load a model folder, or one rank's share of it, onto this machine's cores.

    The calling thread owns the device: torch's thread count is set for it alone. Of several ranks, each has a process
    of its own, calls this at about the same time, and then runs the same steps in the same order.

    Args:
        plan: what to load.
        options: this device's own settings.
        rank: which of the plan's ranks this process is.
        progress: told about loading and packing.

    Raises:
        DeviceUnavailable: torch, transformers or what shards the model is not installed.
        ModelRejected: the folder or its architecture cannot be used.
        PlanRejected: the plan asks for more ranks, positions or memory than there are.
    """
    # Where DeepSpeed is installed, transformers imports it, and its guess at the accelerator goes to standard output.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise DeviceUnavailable(_missing(error.name or str(error))) from error
    from langchain_accel.devices.torch_rows import linears, loading, positions, rounding
    from langchain_accel.devices.torch_rows.device import open_device
    from langchain_accel.devices.torch_rows.threads import use_threads

    if plan.tensor_parallel_size != rank.size:
        msg = f"tensor_parallel_size={plan.tensor_parallel_size} needs as many processes, got {rank.size}"
        raise PlanRejected(msg)
    folder = Path(plan.model)
    config = loading.read_config(folder, trust_remote_code=plan.trust_remote_code)
    loading.refuse_unsupported(config, plan.max_len)
    positions.check_positions(config, plan.max_len)

    serves = spec(plan, options, config.vocab_size)
    why_not = members.unusable(config.to_dict()) if options.kernels else "kernels=False"
    if not _for_kernels(plan, options):
        why_not = why_not or "torch computes several ranks"
    if why_not is None:
        return _load_native(plan, options, serves, config, progress)
    _refuse_without_native(plan, options, why_not)

    dtype = getattr(torch, dtype_of(plan))
    weights = weight_bytes(folder, dtype.itemsize)
    cache = getattr(torch, _cache_dtype(plan, options))
    need = _torch_demand(plan, config.to_dict(), weights=weights, item_bytes=cache.itemsize)
    check_memory(**asdict(need), rows=plan.rows, max_len=plan.max_len, free=available() // rank.local_size)

    with ExitStack() as opened:
        rounds = None
        if rank.size == 1:
            threads = options.threads or cores()
            if options.weights != "exact":
                rounds = rounding.choose(
                    folder, config.to_dict(), options.weights, cache, threads, progress, kernels=options.kernels
                )
                opened.callback(rounds.close)
                threads = rounds.threads
            opened.callback(use_threads, use_threads(threads))
            progress("loading weights", 0, need.weights)
            model = loading.load_model(folder, config, dtype, trust_remote_code=plan.trust_remote_code)
        else:
            model = _load_share(config, dtype, plan, options, rank, progress, opened)
        progress("loading weights", need.weights, need.weights)
        # Where bfloat16 is emulated, packed weights are no faster.
        packs = options.packed and rounds is None and fastest_dtype(cpu_flags()) == "bfloat16"
        kept = ExitStack()  # what the device closes, once there is one
        device = open_device(
            model,
            dtype,
            serves,
            pack=linears.pack if packs else None,
            rounding=rounds,
            progress=progress,
            on_close=kept.close,
            rank=rank,
        )
        kept.push(opened.pop_all())
        return device


def _load_native(plan: Plan, options: Options, serves: Spec, config: Any, progress: Progress) -> Device:
    from langchain_accel.devices.native.loading import open_device
    from langchain_accel.devices.torch_rows.threads import use_threads

    plan = replace(plan, dtype=_settled(plan, options))
    need = _native_demand(plan, options, config.to_dict())
    check_memory(**asdict(need), rows=plan.rows, max_len=plan.max_len, free=available())
    threads = options.threads or cores()
    with ExitStack() as loaded:
        loaded.callback(use_threads, use_threads(threads))
        return open_device(plan, serves, config, options.weights, options.kv_cache, threads, progress)


def _refuse_without_native(plan: Plan, options: Options, why_not: str) -> None:
    if packed.holds(Path(plan.model)):
        msg = f"{plan.model} was exported for langchain-accel-kernels, which do not serve it here: {why_not}"
        raise ModelRejected(msg)
    if options.kv_cache == "int8":
        msg = (
            f"kv_cache='int8' needs langchain-accel-kernels to run whole steps, and here: {why_not}; leave kv_cache out"
        )
        raise PlanRejected(msg)


def _load_share(
    config: Any, dtype: Any, plan: Plan, options: Options, rank: Rank, progress: Progress, opened: ExitStack
) -> Any:
    """Join the other ranks and load this rank's share of the model; `opened` undoes at the end what is done here."""
    from langchain_accel.devices.torch_rows.sharding import shared_memory
    from langchain_accel.devices.torch_rows.sharding.group import join
    from langchain_accel.devices.torch_rows.sharding.model import load_share
    from langchain_accel.devices.torch_rows.threads import use_threads

    strategy = _strategy(config, plan)
    group = join(rank)
    opened.callback(group.close)
    together = group.count({siblings(processor, Path("/")) for processor in os.sched_getaffinity(0)})
    own = max(1, min(cores(ranks=rank.local_size), together // rank.local_size))
    opened.callback(use_threads, use_threads(options.threads or own))
    slower = shared_memory.use(group, together, progress) if options.shared_memory else "shared_memory=False"
    notes = (strategy.note, slower and f"ranks sum through gloo: {slower}")
    for note in filter(None, notes):
        progress(note, 1, 1)
    progress("loading weights", 0, 1)
    return load_share(
        Path(plan.model), config, dtype, strategy.sharder, group, trust_remote_code=plan.trust_remote_code
    )


def _missing(what: str) -> str:
    return f'the xeon device needs torch and transformers ({what} is missing): pip install "langchain-accel[xeon]"'


def _strategy(config: Any, plan: Plan) -> Strategy:
    import transformers

    from langchain_accel.devices.torch_rows.sharding.strategy import choose

    return choose(
        config.to_dict(),
        plan.tensor_parallel_size,
        deepspeed=find_spec("deepspeed") is not None,
        transformers_major=int(transformers.__version__.split(".")[0]),
    )
