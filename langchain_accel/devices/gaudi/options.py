"""What a user may set on this device, and the words of older scripts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from langchain_accel.errors import PlanRejected

if TYPE_CHECKING:
    from langchain_accel.devices.base import Plan

STACKS = ("optimum", "transformers")
MODES = ("lazy", "compile", "eager")

_SMALLEST_BUCKET = 16


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may set on this device.

    Attributes:
        stack: `"optimum"` runs the models of optimum-habana; `"transformers"` runs stock transformers with this
            package's own attention: other architectures, prefix reuse, and no fused kernels.
        mode: of Gaudi's software. On the stack `"optimum"`, `"lazy"` captures HPU graphs, `"compile"` uses
            `torch.compile`, `"eager"` neither. On `"transformers"`, `"lazy"` or `"eager"`, and nothing is captured.
            None for `"lazy"` on the first and `"eager"` on the second.
        python: interpreter of a virtual environment that has Gaudi's software; None for this process's own. The model
            runs in a process of its own either way: optimum-habana changes transformers for its whole process.
        bucket_size: length in tokens of the shortest prefill; the next ones are twice as long each.
        max_input_tokens: longest prompt in tokens; longer ones are refused. None for as many as `max_len` allows.
        limit_hpu_graphs: run prefills without graphs: less device memory, slower first tokens.
        flash_attention: attend with the fused kernel, where a model's class offers it.
        softmax_bf16: compute softmax in bfloat16, where a model's class offers it.
        allow_unverified: load a model type that was not seen to compute what transformers computes.
        quant_config: file with the JSON settings of Intel Neural Compressor for FP8.
        use_hpu_graphs: older word: True for `mode="lazy"`, False for `mode="eager"`.
        use_kv_cache: older word; only True is served.
        bf16: older word: True for the model's `dtype="bfloat16"`, False for `"float32"`.
    """

    stack: str = "optimum"
    mode: str | None = None
    python: str | None = None
    bucket_size: int = 128
    max_input_tokens: int | None = None
    limit_hpu_graphs: bool = False
    flash_attention: bool = False
    softmax_bf16: bool = False
    allow_unverified: bool = False
    quant_config: str | None = None
    use_hpu_graphs: bool | None = None
    use_kv_cache: bool | None = None
    bf16: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what means nothing, and name today's word for each older one.

        Raises:
            PlanRejected: a value is out of its range, or two of them contradict each other.
        """
        for name, known in (("stack", STACKS), ("mode", (*MODES, None))):
            if getattr(self, name) not in known:
                msg = f"{name} must be one of {', '.join(map(repr, known))}, got {getattr(self, name)!r}"
                raise PlanRejected(msg)
        if self.bucket_size < _SMALLEST_BUCKET:
            msg = f"bucket_size must be at least {_SMALLEST_BUCKET} tokens, got {self.bucket_size}"
            raise PlanRejected(msg)
        if self.max_input_tokens is not None and self.max_input_tokens < 1:
            msg = f"max_input_tokens must be at least 1, or None for max_len - 1, got {self.max_input_tokens}"
            raise PlanRejected(msg)
        if self.stack == "transformers" and (self.mode == "compile" or self.use_hpu_graphs):
            msg = (
                'stack="transformers" packs requests into steps of many lengths, which cannot all be captured or '
                'compiled; set mode="eager" or "lazy", or stack="optimum"'
            )
            raise PlanRejected(msg)
        if self.stack == "transformers" and self.max_input_tokens is not None:
            msg = 'with stack="transformers" a prompt may be as long as max_len allows; leave max_input_tokens out'
            raise PlanRejected(msg)
        if self.stack == "transformers" and self.quant_config is not None:
            msg = 'quant_config changes models of optimum-habana; set stack="optimum", or leave it out'
            raise PlanRejected(msg)
        if self.use_kv_cache is False:
            msg = "use_kv_cache=False is not served: the KV cache is always on; leave the word out"
            raise PlanRejected(msg)
        if self.use_hpu_graphs is not None and self.use_hpu_graphs != (self.runs == "lazy"):
            msg = f"use_hpu_graphs={self.use_hpu_graphs} and mode={self.mode!r} contradict each other; keep mode"
            raise PlanRejected(msg)
        self._warn()

    @property
    def runs(self) -> str:
        """The mode that Gaudi's software runs in."""
        default = "lazy" if self.stack == "optimum" and self.use_hpu_graphs is not False else "eager"
        return self.mode or default

    def renamed(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Options]:
        """Return what older words say about a model's own fields, and the options in today's words.

        Args:
            given: values of a model's fields that the user set.

        Raises:
            PlanRejected: an older word and today's say different things.
        """
        today = replace(self, mode=self.runs, use_hpu_graphs=None, use_kv_cache=None, bf16=None)
        if self.bf16 is None:
            return {}, today
        dtype = "bfloat16" if self.bf16 else "float32"
        if given.get("dtype", dtype) != dtype:
            msg = f"bf16={self.bf16} and dtype={given['dtype']!r} contradict each other; keep dtype"
            raise PlanRejected(msg)
        return {"dtype": dtype}, today

    def _warn(self) -> None:
        words = {
            "use_hpu_graphs": f"write mode={self.runs!r}",
            "use_kv_cache": "leave it out, the KV cache is always on",
            "bf16": f"write dtype={'bfloat16' if self.bf16 else 'float32'!r}, beside model=",
        }
        for word, instead in words.items():
            if getattr(self, word) is not None:
                warnings.warn(f"{word}={getattr(self, word)} is an older word: {instead}", FutureWarning, stacklevel=4)


def translated(plan: Plan, options: Options) -> tuple[Plan, Options]:
    """Return plan and options in today's words. A dtype that a plan leaves at its default counts as not set."""
    default = next(field.default for field in fields(plan) if field.name == "dtype")
    said, options = options.renamed({} if plan.dtype == default else {"dtype": plan.dtype})
    return replace(plan, options=options, **said), options
