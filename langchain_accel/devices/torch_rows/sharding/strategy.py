"""Who shards which architecture, and which numbers must divide: decided from the config, before any process starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from langchain_accel.devices.memory import first, head_counts
from langchain_accel.errors import DeviceUnavailable, ModelRejected, PlanRejected


class Sharder(Enum):
    """What takes a model apart."""

    DEEPSPEED = "DeepSpeed AutoTP"
    TRANSFORMERS = "the tensor parallel plan of transformers"
    OWN = "a plan of our own"


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a model is sharded.

    Attributes:
        sharder: what takes it apart.
        note: what the user should know about it; empty for nothing.
    """

    sharder: Sharder
    note: str = ""


AUTOTP = frozenset(
    {
        "bloom",
        "cohere",
        "falcon",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt_bigcode",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "mpt",
        "opt",
        "phi",
        "qwen2",
        "qwen3",
        "stablelm",
        "starcoder2",
    }
)
"""Model types that DeepSpeed shards completely: each was compared with one rank, token by token."""

TP_PLAN = frozenset({"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"})
"""Model types whose plan in transformers splits heads and MLP or experts, compared in the same way; transformers 5."""

OWN = frozenset({"falcon", "gpt2", "phi3"})
"""Model types that only a plan of our own takes apart; of Falcon the first generation (7B, RW)."""

_INSTALL = 'pip install "langchain-accel[xeon-sharding]"'
_TP_PLAN_MAJOR = 5


def choose(config: Mapping[str, Any], ranks: int, *, deepspeed: bool, transformers_major: int) -> Strategy:
    """Choose what shards a model over `ranks` ranks.

    Args:
        config: a model config as a mapping, with the defaults of its class filled in.
        ranks: processes that share the weights.
        deepspeed: DeepSpeed is installed.
        transformers_major: first number of transformers' version.

    Raises:
        PlanRejected: heads or layers cannot be divided evenly.
        ModelRejected: nothing here shards this architecture.
        DeviceUnavailable: what shards it is not installed.
    """
    kind = config["model_type"]
    refuse_uneven(config, ranks)
    first_falcon = kind == "falcon" and not config.get("new_decoder_architecture")
    if first_falcon or (kind in OWN and kind not in AUTOTP):
        return Strategy(Sharder.OWN)
    planned = kind in TP_PLAN and transformers_major >= _TP_PLAN_MAJOR
    if kind in AUTOTP and deepspeed:
        return Strategy(Sharder.DEEPSPEED)
    if planned:
        note = f"DeepSpeed is not installed: sharded by {Sharder.TRANSFORMERS.value}" if kind in AUTOTP else ""
        return Strategy(Sharder.TRANSFORMERS, note)
    if kind in AUTOTP:
        msg = f"tensor_parallel_size={ranks} of model type {kind!r} needs DeepSpeed: {_INSTALL}"
        raise DeviceUnavailable(msg)
    if kind in TP_PLAN:
        msg = (
            f"tensor_parallel_size={ranks} of model type {kind!r} needs transformers {_TP_PLAN_MAJOR}, and "
            f"{transformers_major} is installed: pip install 'transformers>={_TP_PLAN_MAJOR}'"
        )
        raise DeviceUnavailable(msg)
    msg = (
        f"model type {kind!r} cannot be sharded (what can: {', '.join(sorted(AUTOTP | TP_PLAN | OWN))})"
        "; set tensor_parallel_size=1"
    )
    raise ModelRejected(msg)


def refuse_uneven(config: Mapping[str, Any], ranks: int) -> None:
    """Refuse a model whose heads or layer widths cannot be shared evenly.

    Raises:
        PlanRejected: with the numbers, and the sizes that would do.
    """
    heads, kv_heads = head_counts(config)
    widths = {"attention heads": heads, "hidden size": first(config, "hidden_size", "n_embd", "d_model")}
    if kv_heads > 1 or not _one_key_head_for_all(config):
        widths["key/value heads"] = kv_heads
    for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size"):
        if config.get(name):
            widths[name.replace("_", " ")] = config[name]
    uneven = [f"{width} {name}" for name, width in widths.items() if width and width % ranks]
    if uneven:
        fits = [n for n in range(1, ranks + 1) if not any(width % n for width in widths.values() if width)]
        msg = (
            f"tensor_parallel_size={ranks} does not divide the model's {', '.join(uneven)}; "
            f"set it to {' or '.join(map(str, fits))}"
        )
        raise PlanRejected(msg)


def _one_key_head_for_all(config: Mapping[str, Any]) -> bool:
    """Whether the one key and value head of multi-query attention stays whole on every rank."""
    return bool(config.get("multi_query")) and not config.get("new_decoder_architecture")
