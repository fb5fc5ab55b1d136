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
from langchain_accel.devices.memory import first, head_counts
from langchain_accel.devices.native import balance, family, members
from langchain_accel.devices.native.balance import Factors
from langchain_accel.devices.native.packed import Packed
from langchain_accel.devices.torch_rows.adapters import alibi_slopes

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
    member = family.FAMILY[config["model_type"]]
    weight, decoder = model.get_input_embeddings().weight, getattr(model, member.names.decoder)
    ropes = _ropes(decoder, config)
    heads, kv_heads = head_counts(config)
    layers = dict(products(model))
    rounded = layers if weights != "exact" else {}
    factors = balance.of_layers(
        {name: _largest(parts) for name, parts in rounded.items()},
        {name: sum(part.out_features for part in parts) for name, parts in rounded.items()},
        seen.inputs,
        heads,
        kv_heads,
        gated=member.gated,
    )
    arrays = {
        "embedding": _array(weight.to(held)),
        **_norm("norm", getattr(decoder, member.names.norm), member, factors.get("head")),
        "expected": expected,
        **{f"frequencies.{name}": frequencies for name, (frequencies, _) in ropes.items()},
    }
    alibi = ""
    if members.alibi(config):
        alibi = "falcon" if config["model_type"] == "falcon" else str(model.dtype).removeprefix("torch.")
        arrays["slopes"] = alibi_slopes(heads).numpy()
    if member.names.embedding_norm:
        arrays |= _norm("embedding_norm", getattr(decoder, member.names.embedding_norm), member, None)
    for index, layer in enumerate(getattr(decoder, member.names.layers)):
        arrays |= _norms(index, layer, member, factors)
    order = _order(heads, kv_heads, members.width(config)) if member.names.fused else None
    packed = _packed(layers, held, model.dtype, weights, seen, factors, order, threads, progress)
    for name, product in packed.items():
        parts = {product.dtype: product.weight, "scales": product.scales, "bias": product.bias}
        arrays |= {f"{name}.{part}": numbers for part, numbers in parts.items() if numbers is not None}
    return Packed(
        weights,
        _numbers(config, weight, rotary=max((2 * len(frequencies) for frequencies, _ in ropes.values()), default=0)),
        members.windows(config),
        members.ropes(config),
        {name: factor for name, (_, factor) in ropes.items()},
        config.get("attn_logit_softcapping") or 0.0,
        alibi,
        arrays,
    )


def _numbers(config: Mapping[str, Any], embedding: torch.Tensor, *, rotary: int) -> dict[str, Any]:
    """Return sizes and factors as the kernels' `Numbers` names them."""
    member, (heads, kv_heads) = family.FAMILY[config["model_type"]], head_counts(config)
    factor = config[member.embedding_factor] if member.embedding_factor else 1.0
    if member.rooted:
        factor = float(torch.tensor(config["hidden_size"] ** 0.5, dtype=embedding.dtype))
    return {
        "hidden": config["hidden_size"],
        "inner": members.inner(config),
        "heads": heads,
        "kv_heads": kv_heads,
        "width": members.width(config),
        "rotary": rotary,
        "vocabulary": len(embedding),
        "epsilon": first(config, "rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon"),
        "scaling": members.scaling(config),
        "activation": members.activation(config),
        "gated": member.gated,
        "centred": member.centred,
        "parallel": members.parallel(config),
        "embedding_factor": factor,
        "residual_factor": config[member.residual_factor] if member.residual_factor else 1.0,
        "logits_factor": 1 / config[member.logits_divisor] if member.logits_divisor else 1.0,
        "logits_cap": config.get("final_logit_softcapping") or 0.0,
    }


def _norms(index: int, layer: Any, member: family.Member, factors: Mapping[str, Factors]) -> dict[str, NDArray[Any]]:
    """Return the arrays of all norms of a layer."""
    names, attention = member.names, getattr(layer, "self_attn", None)
    before_attention, before_mlp = (
        next(filter(None, (getattr(layer, name, None) for name in each)))
        for each in (names.before_attention, names.before_mlp)
    )
    arrays = _norm(f"{index}.norm", before_attention, member, factors.get(f"{index}.qkv"))
    arrays |= _norm(f"{index}.inner_norm", before_mlp, member, factors.get(f"{index}.gate_up"))
    for name, where, called in (
        ("query_norm", attention, "q_norm"),
        ("key_norm", attention, "k_norm"),
        ("after_attention", layer, names.after_attention),
        ("after_mlp", layer, names.after_mlp),
    ):
        if called and (module := getattr(where, called, None)):
            arrays |= _norm(f"{index}.{name}", module, member, None)
    return arrays


def _ropes(decoder: Any, config: Mapping[str, Any]) -> dict[str, tuple[Logits, float]]:
    """Return frequencies and factor of the rotary positions of a model's layers, by their names."""
    found = {}
    for name in filter(None, dict.fromkeys(members.ropes(config))):
        prefix = "" if name == "rope" else f"{name}_"
        frequencies, factor = (getattr(decoder.rotary_emb, prefix + what) for what in ("inv_freq", "attention_scaling"))
        found[name] = frequencies.float().numpy(), float(factor)
    return found


def _order(heads: int, kv_heads: int, width: int) -> NDArray[np.int64]:
    """Return where queries, keys and values stand in a product that holds them for each key/value head in turn."""
    places = np.arange((heads + 2 * kv_heads) * width).reshape(kv_heads, -1, width)
    return np.concatenate([places[:, :-2].ravel(), places[:, -2].ravel(), places[:, -1].ravel()])


def _packed(
    layers: dict[str, list[torch.nn.Linear]],
    held: torch.dtype,
    computed: torch.dtype,
    weights: str,
    seen: Seen,
    factors: Mapping[str, Factors],
    order: NDArray[np.int64] | None,
    threads: int,
    progress: Progress,
) -> dict[str, kernels.PackedLinear]:
    exact = "bfloat16_pairs" if computed is torch.bfloat16 else None
    done: dict[str, kernels.PackedLinear] = {}

    def moved(name: str) -> NDArray[np.int64] | None:
        return order if name.endswith(".qkv") else None

    def pack_as(dtype: str | None, name: str) -> kernels.PackedLinear:
        return _pack(layers[name], held, dtype, factors.get(name), seen.inputs.get(name), moved(name))

    def pack_one(name: str) -> kernels.PackedLinear:
        packed = pack_as(exact if weights == "exact" else "int8" if name == "head" else weights, name)
        if weights != "int4":  # which comes back for some
            for layer in layers[name]:
                layer.weight = None
        return packed

    def harm(name: str) -> float:
        by, places = factors[name], moved(name)

        def rounded(inputs: Logits) -> Logits:
            outputs: Logits = kernels.linear(done[name], inputs / by.inputs) * by.outputs
            return outputs if places is None else outputs[:, np.argsort(places)]

        return seen.effects[name].harm(rounded)

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
    names = family.FAMILY[model.config.model_type].names
    for index, layer in enumerate(getattr(getattr(model, names.decoder), names.layers)):
        for what, modules in (
            ("qkv", names.qkv),
            ("out", (names.out,)),
            ("gate_up", names.gate_up),
            ("down", (names.down,)),
        ):
            yield f"{index}.{what}", [layer.get_submodule(module) for module in modules]
    yield "head", [model.get_output_embeddings()]


def _largest(layers: list[torch.nn.Linear]) -> Logits:
    """Return the largest magnitude of each input's weights, `[inputs]` float32."""
    largest: Logits = torch.stack([layer.weight.detach().abs().amax(0) for layer in layers]).amax(0).float().numpy()
    return largest


def _pack(
    layers: list[torch.nn.Linear],
    held: torch.dtype,
    dtype: str | None,
    factors: Factors | None,
    seen: Inputs | None,
    order: NDArray[np.int64] | None,
) -> kernels.PackedLinear:
    weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
    bias = None
    if any(layer.bias is not None for layer in layers):
        parts = [torch.zeros(layer.out_features) if layer.bias is None else layer.bias.float() for layer in layers]
        bias = torch.cat(parts).detach().numpy()
    if order is not None:
        weight, bias = weight[order], None if bias is None else bias[order]
    if factors is None:
        return kernels.pack(_array(weight.detach().to(held)), bias, dtype=dtype)
    weight = weight.detach().to(torch.float32, copy=True)
    weight.mul_(torch.from_numpy(factors.inputs)).div_(torch.from_numpy(factors.outputs)[:, None])
    bias = None if bias is None else bias / factors.outputs
    importance = None if seen is None or dtype != "int4" else seen.squares / factors.inputs**2
    return kernels.pack(weight.numpy(), bias, dtype=dtype, importance=importance)


def _norm(name: str, module: Any, member: family.Member, factors: Factors | None) -> dict[str, NDArray[Any]]:
    """Return the arrays of a norm: its weight, and a bias where it has one."""
    bias = getattr(module, "bias", None)
    parts = {"weight": _array(module.weight.detach().float() + member.norm_offset)}
    if bias is not None:
        parts["bias"] = _array(bias.detach().float())
    return {f"{name}.{part}": array if factors is None else array / factors.inputs for part, array in parts.items()}


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a copy of a tensor as the kernels take it: float32, or bfloat16 as uint16."""
    held = tensor.contiguous().view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor.float().contiguous()
    numbers: NDArray[Any] = held.numpy().copy()
    return numbers.view(np.uint16) if tensor.dtype is torch.bfloat16 else numbers
