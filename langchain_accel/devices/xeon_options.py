"""What a user may set on CPUs."""

from __future__ import annotations

from dataclasses import dataclass

from langchain_accel.errors import PlanRejected

_SHORTEST_CHUNK = 16


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may set on this device.

    Attributes:
        weights: `"exact"`, as the plan's dtype says; `"int8"`: linear layers in 8-bit integers, a quarter of the memory
            of float32 and faster, at some loss of precision; `"int4"`: most of them in 4 bits, which takes little more
            than half of that, is faster at generating, and loses more. int4 needs the kernels.
        kv_cache: `"auto"`: keys and values in the dtype that the model is computed in, beside rounded weights in
            bfloat16; `"int8"`: in 8 bits, a scale for each token and head: half of bfloat16's memory, and half of its
            reading, at some loss of precision. int8 needs the kernels' whole steps.
        threads: cores that one step uses; None for the cores this process may run on.
        packed: lay bfloat16 weights out for the matrix kernels once, at load: faster decoding for the same memory.
            Only done where the processor has bfloat16 instructions.
        kernels: compute in float32, or with rounded weights, by langchain-accel-kernels where these are installed, in
            whole steps where they know the model: faster than torch, with rounded weights many times. False for torch
            always.
        prefill_chunk: longest piece of a prompt that one step takes, in tokens. Longer pieces prefill faster, shorter
            ones keep other requests' tokens coming more evenly.
        shared_memory: several ranks on one machine sum through shared memory, with an operation of DeepSpeed that is
            compiled when first needed (a minute or so); False for gloo, which needs no compiler and is slower.
    """

    weights: str = "exact"
    kv_cache: str = "auto"
    threads: int | None = None
    packed: bool = True
    kernels: bool = True
    prefill_chunk: int = 256
    shared_memory: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            PlanRejected: a number is out of its range.
        """
        if self.weights not in ("exact", "int8", "int4"):
            msg = f"weights must be 'exact', 'int8' or 'int4', got {self.weights!r}"
            raise PlanRejected(msg)
        if self.kv_cache not in ("auto", "int8"):
            msg = f"kv_cache must be 'auto' or 'int8', got {self.kv_cache!r}"
            raise PlanRejected(msg)
        if self.threads is not None and self.threads < 1:
            msg = f"threads must be at least 1, or None for every core at hand, got {self.threads}"
            raise PlanRejected(msg)
        if self.prefill_chunk < _SHORTEST_CHUNK:
            msg = f"prefill_chunk must be at least {_SHORTEST_CHUNK} tokens, got {self.prefill_chunk}"
            raise PlanRejected(msg)
