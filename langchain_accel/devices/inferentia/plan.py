"""Will a plan load, and fit into the memory of each core? Arithmetic on config numbers, before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from langchain_accel.errors import PlanRejected

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Instance:
    """Cores of an instance type, each with its own memory.

    Attributes:
        cores: NeuronCores that one process can use.
        core_bytes: memory of a core.
        target: what the compiler calls the family.
    """

    cores: int
    core_bytes: int
    target: str


# AWS, https://aws.amazon.com/ec2/instance-types/inf2, trn1 and trn2: 32 GiB for the two cores of a chip; on trn2
# 96 GiB for the four logical cores of a chip.
_SMALL, _LARGE = 16 * _GIB, 24 * _GIB
INSTANCES: Mapping[str, Instance] = MappingProxyType(
    {
        "inf2.xlarge": Instance(2, _SMALL, "trn1"),
        "inf2.8xlarge": Instance(2, _SMALL, "trn1"),
        "inf2.24xlarge": Instance(12, _SMALL, "trn1"),
        "inf2.48xlarge": Instance(24, _SMALL, "trn1"),
        "trn1.2xlarge": Instance(2, _SMALL, "trn1"),
        "trn1.32xlarge": Instance(32, _SMALL, "trn1"),
        "trn1n.32xlarge": Instance(32, _SMALL, "trn1"),
        "trn2.3xlarge": Instance(4, _LARGE, "trn2"),
        "trn2.48xlarge": Instance(64, _LARGE, "trn2"),
    }
)


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of a model that its memory follows from: a decoder with a gated feed-forward layer."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Numbers:
        """Read them from a config as a mapping, with the defaults of its class filled in."""
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return cls(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocab=config["vocab_size"],
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """What is compiled: `rows` x `max_len` columns on `cores` cores, `item_bytes` a number."""

    rows: int
    max_len: int
    cores: int
    item_bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes on each core."""

    weights: int
    cache: int

    @property
    def total(self) -> int:
        """Weights and KV cache together."""
        return self.weights + self.cache


def padded_heads(numbers: Numbers, cores: int) -> tuple[int, int] | None:
    """Return the query heads and KV heads that optimum-neuron 0.4.5 makes of a model's, or None where it cannot load.

    Query heads are padded to a multiple of the cores. KV heads are padded along with them where every query head has
    its own; else they are split, or copied so that every core has one. A core cannot get a part of a KV head: such a
    model compiles, and fails when its weights are loaded.
    """
    heads = _up(numbers.heads, cores)
    if numbers.kv_heads == numbers.heads:
        return heads, heads
    if numbers.kv_heads % cores == 0:
        return heads, numbers.kv_heads
    if cores % numbers.kv_heads == 0:
        return heads, cores
    return None


def cost(numbers: Numbers, layout: Layout) -> Cost:
    """Return what each core holds.

    Weights are split evenly, each dimension padded to a multiple of the cores; norms are on every core. Embedding and
    output head are two matrices also where the checkpoint ties them: optimum-neuron copies the one to make the other.

    Raises:
        PlanRejected: this number of cores cannot load the model.
    """
    cores, hidden = layout.cores, numbers.hidden
    padded = padded_heads(numbers, cores)
    if padded is None:
        msg = (
            f"tensor_parallel_size={cores} cannot split {numbers.kv_heads} KV heads: optimum-neuron 0.4.5 loads such a "
            f"model where one divides the other; set tensor_parallel_size to one of {_loadable(numbers, cores)}"
        )
        raise PlanRejected(msg)
    queries, keys = (heads // cores * numbers.head_dim for heads in padded)
    attention = (2 * queries + 2 * keys) * hidden
    feed_forward = 3 * hidden * (_up(numbers.intermediate, cores) // cores)
    ends = numbers.vocab * (_up(hidden, cores) // cores) + hidden * (_up(numbers.vocab, cores) // cores)
    norms = (2 * numbers.layers + 1) * hidden
    weights = numbers.layers * (attention + feed_forward) + ends + norms
    columns = layout.rows * layout.max_len
    return Cost(weights * layout.item_bytes, 2 * numbers.layers * keys * columns * layout.item_bytes)


def check_cores(cores: int, instance: Instance) -> None:
    """Refuse more cores than there are.

    Raises:
        PlanRejected: says how many there are.
    """
    if cores > instance.cores:
        msg = (
            f"tensor_parallel_size={cores} asks for {cores} NeuronCores and there are {instance.cores}; set "
            f"tensor_parallel_size <= {instance.cores}, or use a larger instance (NEURON_RT_NUM_CORES and "
            "NEURON_RT_VISIBLE_CORES limit what a process sees)"
        )
        raise PlanRejected(msg)


def check(numbers: Numbers, layout: Layout, instance: Instance, core_share: float) -> Cost:
    """Refuse a plan that cannot load or does not fit, and say which near one does.

    Returns:
        what each core will hold.

    Raises:
        PlanRejected: with all the numbers.
    """
    check_cores(layout.cores, instance)
    found, limit = cost(numbers, layout), int(instance.core_bytes * core_share)
    if found.total <= limit:
        return found
    msg = (
        f"this plan needs {found.total / _GIB:.2f} GiB on each of {layout.cores} NeuronCores (weights "
        f"{found.weights / _GIB:.2f}, KV cache of {layout.rows} rows x {layout.max_len} columns "
        f"{found.cache / _GIB:.2f}) and may take {limit / _GIB:.2f} of a core's {instance.core_bytes / _GIB:.0f} GiB "
        f"(core_share={core_share}); {_nearest(numbers, layout, instance.cores, limit)}"
    )
    raise PlanRejected(msg)


def _nearest(numbers: Numbers, layout: Layout, most: int, limit: int) -> str:
    """Say which single change makes the plan fit: more cores, fewer rows, shorter rows."""
    fits = []
    for cores in range(layout.cores + 1, most + 1):
        if padded_heads(numbers, cores) and cost(numbers, replace(layout, cores=cores)).total <= limit:
            fits.append(f"tensor_parallel_size={cores}")
            break
    found = cost(numbers, layout)
    columns = max(0, limit - found.weights) * layout.rows * layout.max_len // found.cache
    if columns // layout.max_len:
        fits.append(f"rows <= {columns // layout.max_len}")
    if columns // layout.rows >= 2:  # noqa: PLR2004  a prompt and an answer token
        fits.append(f"max_len <= {columns // layout.rows}")
    if fits:
        return "set " + ", or ".join(fits)
    return "no tensor_parallel_size, rows or max_len would fit: take a smaller model or a larger instance"


def _loadable(numbers: Numbers, around: int) -> str:
    """Name the numbers of cores nearest to one that cannot load the model."""
    below = [cores for cores in range(1, around) if padded_heads(numbers, cores)]
    above = next(cores for cores in range(around + 1, around + numbers.kv_heads + 1) if padded_heads(numbers, cores))
    return ", ".join(map(str, [*below[-2:], above]))


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
