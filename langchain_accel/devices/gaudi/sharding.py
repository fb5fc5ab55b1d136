"""One model over several Gaudi: DeepSpeed takes optimum-habana's layers apart, the ranks sum through HCCL."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack, redirect_stdout
from typing import Any

import torch
from torch import nn

from langchain_accel.devices.base import Plan, Rank
from langchain_accel.devices.memory import head_counts
from langchain_accel.devices.torch_rows.sharding.group import join
from langchain_accel.errors import DeviceUnavailable, ModelRejected, PlanRejected

VERIFIED = frozenset({"llama"})
"""Model types whose shares, over two ranks, were seen to answer as the whole model does."""

_OVERLAPPING = frozenset(
    {"falcon", "gemma", "llama", "qwen2", "starcoder2"}
)  # optimum-habana sums outside their layers


def load_share(plan: Plan, config: Any, dtype: torch.dtype, rank: Rank, opened: ExitStack) -> Any:
    """Join the other ranks and load this rank's share of a model; every rank must call this.

    Args:
        plan: what to load, options included.
        config: the model's, as read.
        dtype: of weights and KV cache.
        rank: this rank.
        opened: undoes at the end what is done here.

    Raises:
        DeviceUnavailable: DeepSpeed is not installed.
        ModelRejected: the model type was not verified over ranks, or DeepSpeed fails.
        PlanRejected: the ranks cannot share the heads evenly.
    """
    refuse(config, rank.size, allow_unverified=plan.options.allow_unverified)
    try:
        with redirect_stdout(sys.stderr):
            import deepspeed
    except ImportError as error:
        msg = f"several ranks need DeepSpeed ({error}): install Intel's fork for Gaudi, see docs/gaudi.md"
        raise DeviceUnavailable(msg) from error
    import habana_frameworks.torch.distributed.hccl  # noqa: F401  registers the backend

    opened.callback(join(rank, backend="hccl", accelerator="hpu").close)
    try:
        with redirect_stdout(sys.stderr):
            deepspeed.init_distributed(dist_backend="hccl")
            model = _split(deepspeed, plan, config, dtype, rank)
    except Exception as error:
        msg = f"DeepSpeed cannot shard this {config.model_type} model: {type(error).__name__}: {error}"
        raise ModelRejected(msg) from error
    if config.model_type in _OVERLAPPING:
        _sum_outside(model)
    return model.eval().requires_grad_(False)


def refuse(config: Any, ranks: int, *, allow_unverified: bool) -> None:
    """Refuse a model that ranks cannot share.

    Raises:
        ModelRejected: the model type was not verified over ranks.
        PlanRejected: the heads do not divide.
    """
    heads, kv_heads = head_counts(config.to_dict())
    if heads % ranks or kv_heads % ranks:
        msg = (
            f"tensor_parallel_size={ranks} cannot share {heads} heads and {kv_heads} key/value heads evenly; choose a "
            "number that divides both"
        )
        raise PlanRejected(msg)
    if config.model_type not in VERIFIED and not allow_unverified:
        msg = (
            f"model type {config.model_type!r} was not verified over several Gaudi; verified are "
            f"{', '.join(sorted(VERIFIED))}; set tensor_parallel_size=1, or allow_unverified=True at your own risk"
        )
        raise ModelRejected(msg)


def _split(deepspeed: Any, plan: Plan, config: Any, dtype: torch.dtype, rank: Rank) -> Any:
    """Let DeepSpeed give each rank its share; where it can, weights are read by the ranks that keep them."""
    from optimum.habana.checkpoint_utils import get_ds_injection_policy, model_on_meta, write_checkpoints_json
    from transformers import AutoModelForCausalLM

    config.torch_dtype = dtype
    settings: dict[str, Any] = {
        "dtype": dtype,
        "tensor_parallel": {"tp_size": rank.size},
        "enable_cuda_graph": False,  # the fork would capture graphs of its own, upstream refuses to
        "injection_policy": get_ds_injection_policy(config),
    }
    with tempfile.NamedTemporaryFile(suffix=".json", mode="w+") as listing:
        if model_on_meta(config):
            with deepspeed.OnDevice(dtype=dtype, device="meta"):
                model = AutoModelForCausalLM.from_config(config, torch_dtype=dtype, attn_implementation="eager")
            write_checkpoints_json(plan.model, rank.local_index, listing)
            settings["checkpoint"] = listing.name
        else:
            with deepspeed.OnDevice(dtype=dtype, device="cpu"):
                model = AutoModelForCausalLM.from_pretrained(
                    plan.model, config=config, torch_dtype=dtype, use_safetensors=True, attn_implementation="eager"
                )
        return deepspeed.init_inference(model.eval(), **settings).module


def _sum_outside(module: nn.Module) -> None:
    """Put optimum-habana's own layer where it wants to sum by itself, so that the sum may overlap with what follows."""
    from deepspeed.module_inject.layers import LinearAllreduce
    from optimum.habana.transformers.models.modeling_all_models import ScopedLinearAllReduce

    for name, child in list(module.named_children()):
        if type(child) is LinearAllreduce:
            setattr(module, name, ScopedLinearAllReduce(mod=child))
        _sum_outside(child)
