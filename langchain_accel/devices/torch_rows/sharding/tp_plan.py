"""transformers' own tensor parallel plan: it loads only this rank's share of each file; plain layers of ours follow.

A mixture of experts is merged while it is loaded, so that whole weights would be private memory: here each rank reads
its share of every expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from langchain_accel.devices.torch_rows.sharding.layers import Sum, SummedExperts, SummedLinear, linear
from langchain_accel.errors import ModelRejected

_PARALLEL = frozenset({"colwise", "rowwise", "packed_colwise", "moe_tp_experts"})
_WHOLE = frozenset({"replicated_with_grad_allreduce", "replicate"})  # nothing to do without gradients


def layer_plan(config: Any) -> dict[str, str]:
    """Return the plan of a model's decoder layers; its ends are split by ourselves.

    Raises:
        ModelRejected: the model has no plan, or one with styles that are not known here.
    """
    plan: Mapping[str, str] = getattr(config, "base_model_tp_plan", None) or {}
    unknown = sorted(set(plan.values()) - _PARALLEL - _WHOLE)
    if not plan or unknown:
        why = f"uses {', '.join(unknown)}, which is not known here" if unknown else "does not exist"
        msg = f"the tensor parallel plan of model type {config.model_type!r} {why}; set tensor_parallel_size=1"
        raise ModelRejected(msg)
    return {name: style for name, style in plan.items() if style in _PARALLEL}


def loading_arguments(plan: Mapping[str, str], empty: Any, size: int) -> dict[str, Any]:
    """Return what `from_pretrained` needs to load a share of the decoder layers, and the ends whole.

    Args:
        plan: name with `*` for numbers -> style.
        empty: the model without weights.
        size: all ranks; the process group is open.
    """
    from transformers.distributed import DistributedConfig

    styles = {f"{empty.base_model_prefix}.{name}": style for name, style in plan.items()}
    ends = (empty.get_input_embeddings(), empty.get_output_embeddings())
    # What transformers would do with them is not given up by leaving them out.
    styles |= {name: "replicate" for name, module in empty.named_modules() if module in ends}
    return {"distributed_config": DistributedConfig(tp_plan=styles, tp_size=size)}


def unwrap(model: Any, plan: Mapping[str, str], dtype: torch.dtype, reduce: Sum) -> None:
    """Replace what transformers made of a model's layers by plain layers on this rank's tensors.

    Args:
        model: as transformers loaded it with `plan`.
        plan: name with `*` for numbers -> style.
        dtype: of the weights kept.
        reduce: sums over the ranks.
    """
    modules = dict(model.named_modules())
    styles = {name: _style(name, plan, f"{model.base_model_prefix}.") for name in modules}
    for name, module in modules.items():
        module.__dict__.pop("forward", None)  # transformers' wrapper around it
        if styles[name] is None:
            continue
        parent = modules[name.rpartition(".")[0]]
        own = name.rpartition(".")[2]
        if styles[name] == "moe_tp_experts":
            for key, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, key, nn.Parameter(_local(parameter).to(dtype), requires_grad=False))
            setattr(parent, own, SummedExperts(module, reduce))
        elif isinstance(module, nn.Linear):
            weight = _local(module.weight).to(dtype)
            bias = None if module.bias is None else _local(module.bias).to(dtype)
            split = styles[name] == "rowwise"
            setattr(parent, own, SummedLinear(weight, bias, reduce) if split else linear(weight, bias))


def _style(name: str, plan: Mapping[str, str], prefix: str) -> str | None:
    generic = ".".join("*" if part.isdecimal() else part for part in name.split("."))
    return plan.get(generic.removeprefix(prefix))


def _local(parameter: torch.Tensor) -> torch.Tensor:
    local = parameter.detach()
    return (local.to_local() if hasattr(local, "to_local") else local).clone()
