"""Xeon and other CPUs: a transformers model in torch, its KV cache in our own arena."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_accel.devices.base import Device, Plan, Progress, Rank, Spec, silent
from langchain_accel.devices.memory import available, check_memory, column_bytes, control_groups, weight_bytes
from langchain_accel.errors import DeviceUnavailable, PlanRejected

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Options", "load"]

_DRAFTS = 16
_SHORTEST_CHUNK = 16
_STEP_BYTES = 64 * 2**20  # a step's activations beside its logits: tens of MiB at the default chunk
_FAST_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may set on this device.

    Attributes:
        threads: cores that one step uses; None for the cores this process may run on.
        packed: lay bfloat16 weights out for the matrix kernels once, at load: faster decoding for the same memory.
            Only done where the processor has bfloat16 instructions.
        prefill_chunk: longest piece of a prompt that one step takes, in tokens. Longer pieces prefill faster, shorter
            ones keep other requests' tokens coming more evenly.
    """

    threads: int | None = None
    packed: bool = True
    prefill_chunk: int = 256

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            PlanRejected: a number is out of its range.
        """
        if self.threads is not None and self.threads < 1:
            msg = f"threads must be at least 1, or None for every core at hand, got {self.threads}"
            raise PlanRejected(msg)
        if self.prefill_chunk < _SHORTEST_CHUNK:
            msg = f"prefill_chunk must be at least {_SHORTEST_CHUNK} tokens, got {self.prefill_chunk}"
            raise PlanRejected(msg)


def load(plan: Plan, options: Options, rank: Rank = Rank(), progress: Progress = silent) -> Device:  # noqa: B008
    """Load a model folder onto this machine's cores.

    The calling thread owns the device: torch's thread count is set for it alone.

    Args:
        plan: what to load.
        options: this device's own settings.
        rank: must be the only one.
        progress: told about loading and packing.

    Raises:
        DeviceUnavailable: torch or transformers is not installed.
        ModelRejected: the folder or its architecture cannot be used.
        PlanRejected: the plan asks for more ranks, positions or memory than there are.
    """
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        msg = f'the xeon device needs torch and transformers ({error}): pip install "langchain-accel[xeon]"'
        raise DeviceUnavailable(msg) from error
    from langchain_accel.devices.torch_rows import linears, loading, positions, shapes
    from langchain_accel.devices.torch_rows.device import open_device
    from langchain_accel.devices.torch_rows.threads import use_threads

    if plan.tensor_parallel_size != 1 or rank.size != 1:
        msg = f"the xeon device runs in one process, got tensor_parallel_size={plan.tensor_parallel_size}; set it to 1"
        raise PlanRejected(msg)
    folder = Path(plan.model)
    config = loading.read_config(folder, trust_remote_code=plan.trust_remote_code)
    loading.refuse_unsupported(config, plan.max_len)
    positions.check_positions(config, plan.max_len)

    dtype = getattr(torch, plan.dtype if plan.dtype != "auto" else fastest_dtype(cpu_flags()))
    spec = Spec(
        rows=plan.rows,
        max_len=plan.max_len,
        vocab_size=config.vocab_size,
        prefill_shapes=shapes.prefill_shapes(plan.rows, min(options.prefill_chunk, plan.max_len)),
        decode_shapes=shapes.decode_shapes(plan.rows),
        resumes=True,
        copies=True,
        drafts=_DRAFTS,
    )
    weights = weight_bytes(folder, dtype.itemsize)
    check_memory(
        weights=weights,
        column=column_bytes(config.to_dict(), dtype.itemsize),
        working=_STEP_BYTES + plan.rows * (_DRAFTS + 1) * spec.vocab_size * 4,
        rows=plan.rows,
        max_len=plan.max_len,
        free=available(),
    )

    before = use_threads(options.threads or cores())
    try:
        progress("loading weights", 0, weights)
        model = loading.load_model(folder, config, dtype, trust_remote_code=plan.trust_remote_code)
        progress("loading weights", weights, weights)
        # Where bfloat16 is emulated, packed weights are no faster.
        pack = linears.pack if options.packed and fastest_dtype(cpu_flags()) == "bfloat16" else None
        return open_device(model, dtype, spec, pack=pack, progress=progress, on_close=lambda: use_threads(before))
    except BaseException:
        use_threads(before)
        raise


def fastest_dtype(flags: Collection[str]) -> str:
    """Return the dtype a processor computes fastest: bfloat16 only where it has instructions for it."""
    return "bfloat16" if _FAST_BFLOAT16.intersection(flags) else "float32"


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Return the processor's feature flags, in Linux's spelling; none where they cannot be read."""
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), ()))


def cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may keep busy.

    That is the processors it is allowed on, counting hyperthreads of one core once, within the time its control
    groups grant and within `OMP_NUM_THREADS`.

    Args:
        root: where `proc` and `sys` are.
    """
    allowed = os.sched_getaffinity(0)
    count = len({_siblings(processor, root) for processor in allowed})
    for group in control_groups("cpu", root):
        count = min(count, _granted(group) or count)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(count, int(asked)) if asked.isdecimal() and int(asked) else count


def _siblings(processor: int, root: Path) -> str:
    """Name the physical core of a processor by the processors on it; each is its own where that cannot be read."""
    path = root / f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(processor)


def _granted(group: Path) -> int | None:
    """Cores' worth of time that a control group grants, rounded up; None without a limit."""
    try:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
    except OSError:
        try:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota.strip() in ("max", "-1") else max(1, ceil(int(quota) / int(period)))
