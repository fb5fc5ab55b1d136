"""What a user may set on this device, and the words that older tutorials use for it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from langchain_accel.errors import PlanRejected

if TYPE_CHECKING:
    from langchain_accel.devices.base import Plan

OLD_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "num_cores": "tensor_parallel_size",
        "auto_cast_type": "dtype",
        "batch_size": "rows",
        "sequence_length": "max_len",
    }
)
"""Words of older tutorials, and the field of a model class that each is today."""

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "bfloat16", "float16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may set on this device.

    Attributes:
        instance: instance type to plan and compile for, such as `"inf2.48xlarge"`; None for the one this runs on.
        cache_dir: folder that keeps exported models; None for `langchain-accel/neuron` in the user's cache folder.
        export: compile at first use what the cache does not hold. With False only what was exported before is loaded.
        core_share: part of a core's memory that weights and KV cache may take together. The rest is for code,
            scratch space and transfers, whose size only the compiler knows.
        python: interpreter of a virtual environment that has the Neuron packages; the model then runs in a process of
            its own. None for this process.
        num_cores: older word for the model's `tensor_parallel_size`.
        auto_cast_type: older word for the model's `dtype`.
        batch_size: older word for the model's `rows`.
        sequence_length: older word for the model's `max_len`.
    """

    instance: str | None = None
    cache_dir: str | None = None
    export: bool = True
    core_share: float = 0.7
    python: str | None = None
    num_cores: int | None = None
    auto_cast_type: str | None = None
    batch_size: int | None = None
    sequence_length: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing, and name today's word for each older one.

        Raises:
            PlanRejected: a value is out of its range.
        """
        if not 0 < self.core_share <= 1:
            msg = f"core_share must be above 0 and at most 1, got {self.core_share}"
            raise PlanRejected(msg)
        for old, value in self._older().items():
            today = OLD_WORDS[old]
            meaning = _today(old, value)
            note = " (float16 is not offered: bfloat16 is as small)" if value in ("fp16", "float16") else ""
            warnings.warn(
                f"{old}={value!r} is an older word: write {today}={meaning!r}{note}, beside model=",
                FutureWarning,
                stacklevel=3,
            )

    def renamed(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Options]:
        """Return what older words say in today's words, and the options without them.

        Args:
            given: values of today's words that the user set.

        Raises:
            PlanRejected: an older word and today's say different things.
        """
        said = {}
        for old, value in self._older().items():
            today, meaning = OLD_WORDS[old], _today(old, value)
            if given.get(today, meaning) != meaning:
                msg = f"{old}={value!r} and {today}={given[today]!r} contradict each other; keep {today}"
                raise PlanRejected(msg)
            said[today] = meaning
        none: dict[str, Any] = dict.fromkeys(OLD_WORDS)
        return said, replace(self, **none) if said else self

    def _older(self) -> dict[str, Any]:
        """The older words that were used, with their values."""
        return {old: getattr(self, old) for old in OLD_WORDS if getattr(self, old) is not None}


def translated(plan: Plan, options: Options) -> tuple[Plan, Options]:
    """Return plan and options in today's words. What a plan leaves at its default counts as not set."""
    defaults = {field.name: field.default for field in fields(plan)}
    given = {today: getattr(plan, today) for today in OLD_WORDS.values() if getattr(plan, today) != defaults[today]}
    said, options = options.renamed(given)
    return (replace(plan, **said), options) if said else (plan, options)


def _today(old: str, value: Any) -> Any:
    return _DTYPES.get(value, value) if old == "auto_cast_type" else value
