"""AWS Inferentia and Trainium: a transformers model compiled by optimum-neuron, a KV-cache row per sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_accel.devices.base import Device, Placement, Plan, Progress, Rank, Spec, silent
from langchain_accel.devices.inferentia.options import Options, translated
from langchain_accel.devices.inferentia.plan import Layout, Numbers, cost
from langchain_accel.devices.memory import Demand
from langchain_accel.errors import DeviceUnavailable, PlanRejected

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Options", "demand", "load", "placement", "spec"]


def placement(plan: Plan, options: Options) -> Placement:
    """One process holds the model: the Neuron runtime spreads it over `tensor_parallel_size` cores by itself."""
    del plan
    return Placement(isolated=options.python is not None, python=options.python)


def spec(plan: Plan, options: Options, vocab_size: int) -> Spec:
    """Return what this device serves of a plan: the two graphs that are compiled."""
    del options
    return Spec(
        rows=plan.rows,
        max_len=plan.max_len,
        vocab_size=vocab_size,
        prefill_shapes=((1, plan.max_len),),
        decode_shapes=(plan.rows,),
    )


def demand(plan: Plan, config: Mapping[str, Any], *, weights: int, item_bytes: int) -> Demand:
    """Return the memory that a plan takes of each NeuronCore, in bytes; `core_share` leaves the rest for steps.

    Args:
        plan: what to load.
        config: the model's, with the defaults of its class filled in.
        weights: not used: the cores hold padded shares, which follow from the config.
        item_bytes: bytes of one number.

    Raises:
        PlanRejected: this number of cores cannot load the model.
    """
    del weights
    found = cost(Numbers.of(config), Layout(plan.rows, plan.max_len, plan.tensor_parallel_size, item_bytes))
    return Demand(found.weights, found.cache // (plan.rows * plan.max_len), working=0)


def load(plan: Plan, options: Options, rank: Rank = Rank(), progress: Progress = silent) -> Device:  # noqa: B008
    """Load an exported model onto the NeuronCores of this machine, exporting it first if need be.

    Args:
        plan: what to load. `plan.model` is a checkpoint, or a folder that was exported before.
        options: this device's own settings.
        rank: must be the only one: tensor parallelism happens inside the process.
        progress: told about exporting and loading.

    Raises:
        DeviceUnavailable: the Neuron packages or a Neuron device are missing.
        ModelRejected: the model cannot be used.
        PlanRejected: the plan does not load or fit, or an exported model was made for another one.
    """
    from langchain_accel.devices.inferentia import stack

    if rank.size != 1:
        msg = f"the inferentia device runs in one process for all its cores, got {rank.size} ranks"
        raise PlanRejected(msg)
    plan, options = translated(plan, options)
    stack.require()
    instance = stack.planned(options.instance, serve=True)
    from langchain_accel.devices.inferentia.export import prepare

    return _open(prepare(plan, options, instance, progress), plan, options, progress)


def _open(folder: Path, plan: Plan, options: Options, progress: Progress) -> Device:
    """Load graphs and weights of an exported model."""
    from optimum.neuron import NeuronModelForCausalLM

    from langchain_accel.devices.inferentia.device import NeuronRows
    from langchain_accel.devices.inferentia.export import ONE_AT_A_TIME

    stage = "loading onto NeuronCores"
    progress(stage, 0, 1)
    try:
        with ONE_AT_A_TIME:
            model = NeuronModelForCausalLM.from_pretrained(str(folder))
    except Exception as error:
        msg = f"the Neuron runtime could not load {folder}: {type(error).__name__}: {error}"
        raise DeviceUnavailable(msg) from error
    progress(stage, 1, 1)
    return NeuronRows(model, spec(plan, options, model.config.vocab_size))
