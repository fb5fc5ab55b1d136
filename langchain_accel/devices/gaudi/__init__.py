"""Intel Gaudi: a transformers model on the `hpu` device, by way of optimum-habana or without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_accel.devices.base import Device, Placement, Plan, Progress, Rank, Spec, silent
from langchain_accel.devices.gaudi import fp8, stack
from langchain_accel.devices.gaudi.options import Options, translated
from langchain_accel.devices.memory import Demand, even_demand
from langchain_accel.errors import PlanRejected

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Options", "demand", "load", "placement", "spec"]

_CHUNK, _DRAFTS = 256, 16  # of the stack without optimum-habana
_SEVERAL = 4  # short prompts that one prefill takes
_STEP_BYTES = 2**30  # a step's activations, and what graphs keep for themselves


def placement(plan: Plan, options: Options) -> Placement:
    """Return the processes a plan runs in: never this one, which optimum-habana would change for good.

    Raises:
        PlanRejected: the plan asks for ranks that its stack does not have.
    """
    plan, options = translated(plan, options)
    ranks = plan.tensor_parallel_size
    if ranks > 1 and options.stack == "transformers":
        msg = f'tensor_parallel_size={ranks} needs stack="optimum"; the stack "transformers" serves on one Gaudi'
        raise PlanRejected(msg)
    if options.quant_config is not None:
        fp8.check(options.quant_config, plan.dtype)
    return Placement(
        ranks=ranks,
        isolated=True,
        python=options.python,
        environment=stack.environment(options.runs, ranks, options.quant_config),
        resources=(("HPU", 1.0),),
    )


def spec(plan: Plan, options: Options, vocab_size: int) -> Spec:
    """Return what this device serves of a plan."""
    plan, options = translated(plan, options)
    if options.stack == "transformers":
        from langchain_accel.devices.torch_rows import shapes

        return Spec(
            rows=plan.rows,
            max_len=plan.max_len,
            vocab_size=vocab_size,
            prefill_shapes=shapes.prefill_shapes(plan.rows, min(_CHUNK, plan.max_len)),
            decode_shapes=shapes.decode_shapes(plan.rows),
            resumes=True,
            copies=True,
            drafts=_DRAFTS,
        )
    longest = min(options.max_input_tokens or plan.max_len, plan.max_len)
    lengths = [longest]
    while (shorter := options.bucket_size << (len(lengths) - 1)) < longest:
        lengths.append(shorter)
    return Spec(
        rows=plan.rows,
        max_len=plan.max_len,
        vocab_size=vocab_size,
        prefill_shapes=tuple(sorted({(1, length) for length in lengths} | {(min(plan.rows, _SEVERAL), min(lengths))})),
        decode_shapes=(plan.rows,),
    )


def demand(plan: Plan, config: Mapping[str, Any], *, weights: int, item_bytes: int) -> Demand:
    """Return the memory that a plan takes of each Gaudi, in bytes.

    Args:
        plan: what to load.
        config: the model's, with the defaults of its class filled in.
        weights: bytes of all weights.
        item_bytes: bytes of one number.
    """
    ranks = plan.tensor_parallel_size
    return even_demand(config, weights=weights, item_bytes=item_bytes, ranks=ranks, working=_STEP_BYTES)


def load(plan: Plan, options: Options, rank: Rank = Rank(), progress: Progress = silent) -> Device:  # noqa: B008
    """Load a model folder, or one rank's share of it, onto a Gaudi.

    Call it in a process of its own, as `placement` says: it changes torch and transformers for the whole process.

    Args:
        plan: what to load.
        options: this device's own settings.
        rank: which of the plan's ranks this process is.
        progress: told about loading.

    Raises:
        DeviceUnavailable: Gaudi's software or a Gaudi is missing, or versions do not belong together.
        ModelRejected: the model cannot be used, or was not verified.
        PlanRejected: the plan asks for more positions, memory or ranks than there are.
    """
    plan, options = translated(plan, options)
    if plan.tensor_parallel_size != rank.size:
        msg = f"tensor_parallel_size={plan.tensor_parallel_size} needs as many processes, got {rank.size}"
        raise PlanRejected(msg)
    hpu = stack.require(options.runs)
    if options.stack == "transformers":
        from langchain_accel.devices.gaudi.stock import open_stock

        return open_stock(plan, hpu, progress)
    if options.quant_config is not None:
        fp8.check(options.quant_config, plan.dtype)
        fp8.require()
    stack.adapt()
    from langchain_accel.devices.gaudi.optimum_model import open_optimum

    return open_optimum(plan, rank, hpu, progress)
