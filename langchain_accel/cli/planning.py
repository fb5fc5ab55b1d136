"""Will a plan fit, and what is the largest that would? Arithmetic on config numbers; no weights are loaded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langchain_accel.cli.targets import Target
from langchain_accel.devices.base import Plan, Spec
from langchain_accel.devices.memory import Demand, even_demand, weight_bytes
from langchain_accel.devices.native import packed
from langchain_accel.devices.torch_rows.positions import check_positions, position_limit
from langchain_accel.errors import DeviceUnavailable, ModelRejected
from langchain_accel.runtime.registry import find
from langchain_accel.runtime.shapes import declared

_ITEM_BYTES = {"float32": 4, "bfloat16": 2}
_MOST_ROWS, _MOST_COLUMNS = 2**30, 2**30  # nobody asks for more; bounds of the search only


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a plan takes of each card.

    Attributes:
        device: name of the device.
        cards: cards, or ranks, that share the weights.
        dtype: what weights and KV cache are kept in.
        weights: bytes of the weights on each.
        cache: bytes of the KV cache on each.
        working: bytes of a step's own tensors on each, where the device counts them.
        token_bytes: bytes of the KV cache that one token takes on each.
        usable: bytes that the three together may take.
        memory: bytes that each has; what is not usable is kept free for the vendor's software.
        shapes: declared shapes, each warmed up once; None where this release does not know.
        most_rows: the largest `rows` that fits with this `max_len`; 0 where none does.
        longest: the largest `max_len` that fits with these `rows`, within the model's positions; 0 where none does.
    """

    device: str
    cards: int
    dtype: str
    weights: int
    cache: int
    working: int
    token_bytes: int
    usable: int
    memory: int
    shapes: int | None
    most_rows: int
    longest: int

    @property
    def fits(self) -> bool:
        """Whether the plan fits."""
        return self.weights + self.cache + self.working <= self.usable


def outlook(plan: Plan, target: Target) -> Outlook:
    """Return what a plan would take of a target's cards.

    Args:
        plan: what to load. `plan.model` is a model folder, a `config.json`, or a hub id, of which only the config is
            fetched. Weights are counted from the headers of the safetensors files where they are, else from the config.
        target: what to load it on.

    Raises:
        ModelRejected: the model cannot be used.
        PlanRejected: more cards than there are, a `max_len` beyond the model's positions, or numbers that do not
            divide.
        DeviceUnavailable: there are no weights, and counting them from a config needs torch.
    """
    usable = target.usable(plan.tensor_parallel_size)
    folder = _folder(plan)
    config = _config(folder, plan)
    dtype = _dtype(plan)
    item_bytes = _ITEM_BYTES[dtype]
    if packed.holds(folder):
        weights = 0  # the device knows how many bytes they are
    elif any(folder.glob("*.safetensors")):
        weights = weight_bytes(folder, item_bytes)
    else:
        weights = parameters(config, trust_remote_code=plan.trust_remote_code) * item_bytes
    entries = config.to_dict()

    def need(rows: int, max_len: int) -> Demand:
        return _demand(replace(plan, rows=rows, max_len=max_len), entries, weights, item_bytes)

    def fits(rows: int, max_len: int) -> bool:
        return need(rows, max_len).total(rows, max_len) <= usable

    here = need(plan.rows, plan.max_len)
    positions = position_limit(config)[0] or _MOST_COLUMNS
    spec = _spec(plan, entries["vocab_size"])
    return Outlook(
        device=plan.device,
        cards=plan.tensor_parallel_size,
        dtype=dtype,
        weights=here.weights,
        cache=plan.rows * plan.max_len * here.column,
        working=here.working,
        token_bytes=here.column,
        usable=usable,
        memory=target.memory,
        shapes=None if spec is None else len(declared(spec)),
        most_rows=largest(lambda rows: fits(rows, plan.max_len), range(1, _MOST_ROWS)),
        longest=largest(partial(fits, plan.rows), range(2, positions + 1)),  # a prompt and an answer token
    )


def parameters(config: Any, *, trust_remote_code: bool = False) -> int:
    """Return how many numbers a model's weights are, from a skeleton that holds none of them.

    Args:
        config: a transformers config.
        trust_remote_code: run Python code that comes with it.

    Raises:
        DeviceUnavailable: torch is not installed.
        ModelRejected: transformers makes no causal language model of this config.
    """
    try:
        import torch
    except ImportError as error:
        msg = 'counting the weights of a config without its weights needs torch: pip install "langchain-accel[xeon]"'
        raise DeviceUnavailable(msg) from error
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        msg = f"transformers makes no causal language model of this config: {type(error).__name__}: {error}"
        raise ModelRejected(msg) from error
    return sum(parameter.numel() for parameter in skeleton.parameters())


def largest(fits: Callable[[int], bool], numbers: range) -> int:
    """Return the largest of ascending numbers that fits, 0 where none does; all below one that fits must fit too."""
    end = bisect_left(numbers, True, key=lambda number: not fits(number))
    return numbers[end - 1] if end else 0


def _folder(plan: Plan) -> Path:
    """Return the folder that holds the config; of a hub id, nothing else is fetched."""
    path = Path(plan.model).expanduser()
    if path.is_dir() or path.is_file():
        return path if path.is_dir() else path.parent
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(plan.model, "config.json", revision=plan.revision)).parent
    except Exception as error:
        msg = (
            f"model={plan.model!r} is no folder, no config.json and no hub id that could be reached "
            f"({type(error).__name__}: {error}); check the spelling, or give the folder"
        )
        raise ModelRejected(msg) from error


def _config(folder: Path, plan: Plan) -> Any:
    """Read the config, and refuse what the device would refuse for it."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=plan.trust_remote_code)
    except Exception as error:
        msg = f"config.json of {folder} cannot be used: {type(error).__name__}: {error}"
        raise ModelRejected(msg) from error
    check_positions(config, plan.max_len)
    if plan.device == "inferentia":
        from langchain_accel.devices.inferentia.configs import refuse

        refuse(config, plan.max_len)
    elif find_spec("torch") is not None:
        from langchain_accel.devices.torch_rows.loading import refuse_unsupported

        refuse_unsupported(config, plan.max_len)
    return config


def _dtype(plan: Plan) -> str:
    """Return what a plan's numbers are kept in: on accelerators bfloat16 unless it says otherwise."""
    from langchain_accel.devices import xeon

    if plan.device == "xeon":
        return xeon.dtype_of(plan)
    return "bfloat16" if plan.dtype == "auto" else plan.dtype


def _demand(plan: Plan, config: dict[str, Any], weights: int, item_bytes: int) -> Demand:
    """Return what the device itself says a plan takes; for one that says nothing, even shares."""
    if (own := getattr(_module(plan.device), "demand", None)) is not None:
        found: Demand = own(plan, config, weights=weights, item_bytes=item_bytes)
        return found
    return even_demand(config, weights=weights, item_bytes=item_bytes, ranks=plan.tensor_parallel_size)


def _spec(plan: Plan, vocab_size: int) -> Spec | None:
    """Return what the device would serve, where it says so before it loads."""
    module = _module(plan.device)
    if (own := getattr(module, "spec", None)) is None:
        return None
    found: Spec = own(plan, plan.options or module.Options(), vocab_size)
    return found


def _module(device: str) -> Any:
    """Return the module of a device; None where this release has none."""
    try:
        return import_module(find(device))
    except DeviceUnavailable:
        return None
