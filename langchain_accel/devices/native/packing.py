"""From a transformers model to the kernels' arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import langchain_accel_kernels as kernels
import numpy as np
import torch
from numpy.typing import NDArray

from langchain_accel.devices.base import Logits, Progress
from langchain_accel.devices.memory import head_counts
from langchain_accel.devices.native import balance, members
from langchain_accel.devices.native.balance import Factors
from langchain_accel.devices.native.packed import Packed

if TYPE_CHECKING:
    from langchain_accel.devices.native.calibration import Inputs, Seen


def pack(
    model: Any,
    held: torch.dtype,
    expected: Logits,
    weights: str,
    seen: Seen,
    threads: int,
    progress: Progress,
) -> Packed:
    """Lay a model's products out for the kernels.

    Args:
        model: of the family, as transformers loaded it, in float32 or bfloat16, in which exact weights are computed;
            its weights are released as they go.
        held: dtype of the checkpoint's numbers, float32 or bfloat16, in which what is not rounded is laid out.
        expected: its logits for the self-check's prompt.
        weights: `"exact"`, `"int8"`, or `"int4"`, which leaves the head, and the products that do most harm, in 8 bits.
        seen: what a text showed of the products.
        threads: that pack, a product each.
        progress: told about packing.
    """
    config = model.config.to_dict()
    member = members.FAMILY[config["model_type"]]
    weight, rope = model.model.embed_tokens.weight, model.model.rotary_emb
    factor = config[member.embedding_factor] if member.embedding_factor else 1.0
    if member.rooted:
        factor = float(torch.tensor(config["hidden_size"] ** 0.5, dtype=weight.dtype))
    heads, kv_heads = head_counts(config)
    layers = dict(products(model))
    rounded = layers if weights != "exact" else {}
    factors = balance.of_layers(
        {name: _largest(parts) for name, parts in rounded.items()},
        {name: sum(part.out_features for part in parts) for name, parts in rounded.items()},
        seen.inputs,
        heads,
        kv_heads,
    )
    numbers = {
        "hidden": config["hidden_size"],
        "inner": config["intermediate_size"],
        "heads": heads,
        "kv_heads": kv_heads,
        "width": members.width(config),
        "rotary": 2 * len(rope.inv_freq),
        "vocabulary": len(weight),
        "epsilon": config["rms_norm_eps"],
        "scaling": config[member.scaling] if member.scaling else members.width(config) ** -0.5,
        "activation": members.activation(config),
        "embedding_factor": factor,
        "residual_factor": config[member.residual_factor] if member.residual_factor else 1.0,
        "logits_factor": 1 / config[member.logits_divisor] if member.logits_divisor else 1.0,
    }
    arrays = {
        "embedding": _array(weight.to(held)),
        "norm": _norm(model.model.norm, member, factors.get("head")),
        "frequencies": rope.inv_freq.float().numpy(),
        "expected": expected,
    }
    for index, layer in enumerate(model.model.layers):
        arrays[f"{index}.norm"] = _norm(layer.input_layernorm, member, factors.get(f"{index}.qkv"))
        inner = factors.get(f"{index}.gate_up")
        arrays[f"{index}.inner_norm"] = _norm(layer.post_attention_layernorm, member, inner)
        if hasattr(layer.self_attn, "q_norm"):
            arrays[f"{index}.query_norm"] = _norm(layer.self_attn.q_norm, member, None)
            arrays[f"{index}.key_norm"] = _norm(layer.self_attn.k_norm, member, None)
    for name, product in _packed(layers, held, model.dtype, weights, seen, factors, threads, progress).items():
        parts = {product.dtype: product.weight, "scales": product.scales, "bias": product.bias}
        arrays |= {f"{name}.{part}": numbers for part, numbers in parts.items() if numbers is not None}
    return Packed(weights, numbers, members.windows(config), float(rope.attention_scaling), arrays)


def _packed(
    layers: dict[str, list[torch.nn.Linear]],
    held: torch.dtype,
    computed: torch.dtype,
    weights: str,
    seen: Seen,
    factors: Mapping[str, Factors],
    threads: int,
    progress: Progress,
) -> dict[str, kernels.PackedLinear]:
    exact = "bfloat16_pairs" if computed is torch.bfloat16 else None
    done: dict[str, kernels.PackedLinear] = {}

    def pack_as(dtype: str | None, name: str) -> kernels.PackedLinear:
        return _pack(layers[name], held, dtype, factors.get(name), seen.inputs.get(name))

    def pack_one(name: str) -> kernels.PackedLinear:
        packed = pack_as(exact if weights == "exact" else "int8" if name == "head" else weights, name)
        if weights != "int4":  # which comes back for some
            for layer in layers[name]:
                layer.weight = None
        return packed

    def harm(name: str) -> float:
        by = factors[name]
        return seen.effects[name].harm(lambda inputs: kernels.linear(done[name], inputs / by.inputs) * by.outputs)

    with ThreadPoolExecutor(threads) as pool:
        for name, product in zip(layers, pool.map(pack_one, layers), strict=True):
            progress("packing weights", len(done), len(layers))
            done[name] = product
        if weights == "int4":
            judged = [name for name in done if name in seen.effects and name != "head"]
            sizes = [done[name].weight.size for name in judged]
            harms = list(pool.map(harm, judged))
            kept = sensitive(dict(zip(judged, zip(harms, sizes, strict=True), strict=True)))
            done |= dict(zip(kept, pool.map(partial(pack_as, "int8"), kept), strict=True))
    progress("packing weights", len(layers), len(layers))
    return done


def sensitive(products: Mapping[str, tuple[float, int]]) -> list[str]:
    """Choose the products that are worth more bits.

    Args:
        products: the harm that each does in few bits, and its size.

    Returns:
        Those that do most, as long as they are no more than `members.KEPT` of all in size.
    """
    left = members.KEPT * sum(size for _, size in products.values())
    kept = []
    for name, (harm, size) in sorted(products.items(), key=lambda item: -item[1][0]):
        if harm and size <= left:
            kept.append(name)
            left -= size
    return kept


def products(model: Any) -> Iterator[tuple[str, list[torch.nn.Linear]]]:
    """Yield the name of every product of the kernels, and the layers that make it, one below the other."""
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        whole = hasattr(attention, "qkv_proj")
        yield f"{index}.qkv", [attention.qkv_proj] if whole else [attention.q_proj, attention.k_proj, attention.v_proj]
        yield f"{index}.out", [attention.o_proj]
        yield f"{index}.gate_up", [mlp.gate_up_proj] if hasattr(mlp, "gate_up_proj") else [mlp.gate_proj, mlp.up_proj]
        yield f"{index}.down", [mlp.down_proj]
    yield "head", [model.lm_head]


def _largest(layers: list[torch.nn.Linear]) -> Logits:
    """Return the largest magnitude of each input's weights, `[inputs]` float32."""
    largest: Logits = torch.stack([layer.weight.detach().abs().amax(0) for layer in layers]).amax(0).float().numpy()
    return largest


def _pack(
    layers: list[torch.nn.Linear], held: torch.dtype, dtype: str | None, factors: Factors | None, seen: Inputs | None
) -> kernels.PackedLinear:
    weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
    bias = None
    if any(layer.bias is not None for layer in layers):
        parts = [torch.zeros(layer.out_features) if layer.bias is None else layer.bias.float() for layer in layers]
        bias = torch.cat(parts).numpy()
    if factors is None:
        return kernels.pack(_array(weight.to(held)), bias, dtype=dtype)
    weight = weight.detach().to(torch.float32, copy=True)
    weight.mul_(torch.from_numpy(factors.inputs)).div_(torch.from_numpy(factors.outputs)[:, None])
    bias = None if bias is None else bias / factors.outputs
    importance = None if seen is None or dtype != "int4" else seen.squares / factors.inputs**2
    return kernels.pack(weight.numpy(), bias, dtype=dtype, importance=importance)


def _norm(module: Any, member: members.Member, factors: Factors | None) -> NDArray[Any]:
    weight = _array(module.weight.float() + member.norm_offset)
    return weight if factors is None else weight / factors.inputs


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a copy of a tensor as the kernels take it: float32, or bfloat16 as uint16."""
    held = tensor.contiguous().view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor.float().contiguous()
    numbers: NDArray[Any] = held.numpy().copy()
    return numbers.view(np.uint16) if tensor.dtype is torch.bfloat16 else numbers
