"""What a plan can be made for: accelerators with their memory, and this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from langchain_accel.devices.inferentia.options import Options as InferentiaOptions
from langchain_accel.devices.inferentia.plan import INSTANCES
from langchain_accel.devices.memory import available
from langchain_accel.errors import PlanRejected

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Target:
    """Cards that one plan can use, and their memory.

    Attributes:
        device: name of the device that runs the plan.
        cards: how many there are; None where ranks are processes that share one memory, of which there may be any.
        memory: bytes of one card, or of the memory that all ranks share.
        share: part of it that weights, KV cache and working memory may take together.
        card: what one is called.
    """

    device: str
    cards: int | None
    memory: int
    share: float
    card: str

    def usable(self, ranks: int) -> int:
        """Return the bytes that each of so many ranks may take.

        Raises:
            PlanRejected: there are fewer cards.
        """
        if self.cards is None:
            return int(self.memory * self.share) // ranks
        if ranks > self.cards:
            msg = (
                f"tensor_parallel_size={ranks} asks for {ranks} {self.card}s and there are {self.cards}; set "
                f"tensor_parallel_size <= {self.cards}, or plan for a larger machine"
            )
            raise PlanRejected(msg)
        return int(self.memory * self.share)


# A tenth is kept for code, captured graphs, scratch space and transfers, which only the vendor's software knows: what
# vLLM's default gpu_memory_utilization=0.9 leaves, https://docs.vllm.ai/en/stable/configuration/engine_args.html.
_SHARE = 0.9

# Gaudi: eight cards a server, https://huggingface.co/docs/transformers/perf_train_gaudi.
# Ascend 910B: Atlas 800I A2, https://docs.sglang.io/docs/hardware-platforms/ascend-npus/ascend_npu_reference.
# Ascend 310P: the two chips of an Atlas 300I Duo of 96 GB, four of which a server holds here,
# https://docs.vllm.ai/projects/ascend/en/latest/tutorials/hardwares/310p.html.
_NAMED = {
    "gaudi": Target("gaudi", 8, 32 * _GIB, _SHARE, "Gaudi card"),
    "gaudi2": Target("gaudi", 8, 96 * _GIB, _SHARE, "Gaudi 2 card"),
    "gaudi3": Target("gaudi", 8, 128 * _GIB, _SHARE, "Gaudi 3 card"),
    "ascend910b": Target("ascend", 8, 64 * _GIB, _SHARE, "Ascend 910B"),
    "ascend310p": Target("ascend", 8, 48 * _GIB, _SHARE, "Ascend 310P"),
}

ACCELERATORS: Mapping[str, Target] = MappingProxyType(
    _NAMED
    | {
        name: Target("inferentia", one.cores, one.core_bytes, InferentiaOptions().core_share, "NeuronCore")
        for name, one in INSTANCES.items()
    }
)
"""Accelerators whose memory is known, by name: as many as one server or instance has."""

HERE = "xeon"
"""The name of this machine's processors."""


def find(name: str) -> Target:
    """Return a target by name; for `"xeon"` it is what this machine has free now.

    Raises:
        PlanRejected: no such target is known.
    """
    if name == HERE:
        return Target("xeon", None, available(), 1.0, "rank")
    if name not in ACCELERATORS:
        msg = f"nothing is known of {name!r}; plan for one of {', '.join((HERE, *ACCELERATORS))}"
        raise PlanRejected(msg)
    return ACCELERATORS[name]
