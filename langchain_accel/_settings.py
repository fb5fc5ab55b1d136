"""What chat models and LLMs have in common: their fields, and the way from fields to engine and sampling settings."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.language_models import BaseLanguageModel
from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from typing_extensions import Self

from langchain_accel._version import __version__
from langchain_accel.devices.base import Plan
from langchain_accel.errors import InvalidRequest
from langchain_accel.runtime import registry
from langchain_accel.runtime.progress import bar
from langchain_accel.runtime.request import SamplingParams

if TYPE_CHECKING:
    from langchain_accel.runtime.stats import Stats

SAMPLING = (
    "max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "logit_bias", "seed", "logprobs", "top_logprobs", "stop_token_ids", "ignore_eos",
    "prompt_lookup", "n",
)  # fmt: skip
"""Fields that a call may override by keyword."""

IDENTITY = (*SAMPLING, "model", "revision", "dtype", "max_len", "tensor_parallel_size", "trust_remote_code")
"""Fields that change an answer: the key of LangChain's cache."""


class AccelSettings(BaseLanguageModel[Any]):
    """Fields of every model class of this package.

    Unknown fields are refused. Weights are loaded at the first call, or by `load()`; objects with the same plan
    (device, model, rows, max_len, dtype and options) share one engine and its weights.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    device: ClassVar[str]
    """Module under `langchain_accel.devices` that runs the model."""

    model: str
    """Folder of the checkpoint (config, safetensors weights, tokenizer), or a Hugging Face hub id."""

    revision: str | None = None
    """Branch, tag or commit of a hub id. (Default: the main branch.)"""

    rows: int = 8
    """Requests served at once: rows of the KV cache arena. More rows answer larger batches faster and take more
    memory. (Default: 8)"""

    max_len: int = 2048
    """Tokens of prompt and answer together, per request. Longer prompts are refused. (Default: 2048)"""

    dtype: str = "auto"
    """`"auto"`, `"float32"` or `"bfloat16"`. (Default: what the hardware is fast at)"""

    tensor_parallel_size: int = 1
    """Ranks that share the weights. (Default: 1)"""

    placement: str = "local"
    """Where the ranks run: `"local"` on this machine, `"ray"` on the nodes of a Ray cluster: the one that the variable
    RAY_ADDRESS names, or one started on this machine. (Default: "local")"""

    replicas: int = 1
    """Whole copies of the model, each with its own ranks and `rows`; requests are spread over them. (Default: 1)"""

    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. (Default: False)"""

    queue_limit: int = 1024
    """Requests that may wait for a row before new ones are refused. (Default: 1024)"""

    temperature: float | None = None
    """0 is greedy; higher is more random. (Default: the checkpoint's `generation_config.json`, else 0)"""

    top_k: int | None = None
    """Sample from the k most probable tokens; 0 is all. (Default: the checkpoint's, else 0)"""

    top_p: float | None = None
    """Sample from the smallest set of tokens with this much probability. (Default: the checkpoint's, else 1)"""

    min_p: float | None = None
    """Drop tokens less probable than this share of the most probable one. (Default: the checkpoint's, else 0)"""

    repetition_penalty: float | None = None
    """Above 1 discourages tokens already in prompt or answer. (Default: the checkpoint's, else 1)"""

    presence_penalty: float | None = None
    """Subtracted once from the logit of every token already in the answer. (Default: 0)"""

    frequency_penalty: float | None = None
    """Subtracted per occurrence from the logit of every token already in the answer. (Default: 0)"""

    logit_bias: dict[int, float] | None = None
    """Added to the logit of each token id. (Default: none)"""

    seed: int | None = None
    """Makes sampling repeatable, whatever else runs in the same batch. (Default: none)"""

    max_tokens: int | None = 512
    """Longest answer in tokens; `None` goes as far as `max_len`. (Default: 512)"""

    min_tokens: int | None = None
    """The answer does not end before this many tokens. (Default: 0)"""

    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    """Strings that end the answer and are not part of it. (Default: none)"""

    stop_token_ids: list[int] | None = None
    """Token ids that end the answer, beside the model's own. (Default: none)"""

    ignore_eos: bool | None = None
    """Go on past the model's end-of-sequence tokens. (Default: False)"""

    prompt_lookup: bool | None = None
    """Guess tokens that the answer may quote from its prompt, and check several in one step, where the device can; the
    answer is the same. (Default: True)"""

    logprobs: bool | None = None
    """Report the log-probability of every token. (Default: False)"""

    top_logprobs: int | None = None
    """Report this many alternatives per token as well; implies `logprobs`. (Default: 0)"""

    n: int | None = None
    """Answers per prompt, each on a row of its own. (Default: 1)"""

    progress_bar: bool = True
    """Draw a progress bar while loading, where standard error is a terminal. (Default: True)"""

    _leases: dict[Plan, registry.Lease] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check_accel_device(self) -> Self:
        registry.find(self.device)
        return self

    @model_validator(mode="after")
    def _set_accel_version(self) -> Self:
        self._add_version("langchain-accel", __version__)
        return self

    @model_validator(mode="after")
    def _adopt_older_words(self) -> Self:
        """A device's options may know older words for our fields (`num_cores`); from here on these fields hold them."""
        if renamed := getattr(getattr(self, "options", None), "renamed", None):
            said, options = renamed({name: getattr(self, name) for name in self.model_fields_set})
            for name, value in {**said, "options": options}.items() if said else ():
                setattr(self, name, value)
        return self

    def load(self) -> Self:
        """Load the weights and warm the device up now instead of at the first call.

        Raises:
            DeviceUnavailable: the device's software is not installed.
            ModelRejected: the model cannot be used.
            PlanRejected: the plan cannot be carried out on this machine.
        """
        self._engine_lease()
        return self

    def close(self) -> None:
        """Let go of the weights; they are released when no other object uses them. The next call loads again."""
        leases, self._leases = self._leases, {}
        for lease in leases.values():
            lease.close()

    def stats(self) -> Stats:
        """Return the engine's counters, loading it if need be. Objects with the same plan share them."""
        return self._engine_lease().engine.stats()

    def get_token_ids(self, text: str) -> list[int]:
        """Return the token ids of a text by the model's own tokenizer, without special tokens."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._engine_lease().checkpoint.encode(text, add_special_tokens=False)

    @property
    def _accel_identity(self) -> dict[str, Any]:
        """Everything that changes an answer. LangChain adds the stop strings of a call under the key `stop`."""
        options = getattr(self, "options", None)
        settings = {name: getattr(self, name) for name in IDENTITY}
        return {"device": self.device, **settings, "options": options, "default_stop": self.stop}

    def _ls_params(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What LangSmith records about a call."""
        named = {"ls_temperature": "temperature", "ls_max_tokens": "max_tokens"}
        params = {key: kwargs.get(name, getattr(self, name)) for key, name in named.items()}
        return {
            "ls_provider": "langchain-accel",
            "ls_model_name": kwargs.get("model") or self.model,
            **_given(params | {"ls_stop": stop or self.stop}),
        }

    def _plan(self, model: str | None) -> Plan:
        """Return what these fields ask for, the model not yet looked for."""
        return Plan(
            device=self.device,
            model=model or self.model,
            revision=self.revision,
            rows=self.rows,
            max_len=self.max_len,
            dtype=self.dtype,
            tensor_parallel_size=self.tensor_parallel_size,
            placement=self.placement,
            replicas=self.replicas,
            trust_remote_code=self.trust_remote_code,
            queue_limit=self.queue_limit,
            options=getattr(self, "options", None),
        )

    def _engine_lease(self, model: str | None = None) -> registry.Lease:
        """Return the hold on this object's engine, or on that of another model with the same settings."""
        plan = self._plan(model)
        lease = self._leases.get(plan)
        if lease is None or lease.closed:
            lease = self._leases[plan] = registry.shared(plan, *([bar()] if self.progress_bar else []))
        return lease

    async def _aengine_lease(self, model: str | None = None) -> registry.Lease:
        """As `_engine_lease`; a load does not block the event loop."""
        lease = self._leases.get(self._plan(model))
        if lease is not None and not lease.closed:
            return lease
        return await asyncio.to_thread(self._engine_lease, model)

    def _sampling(
        self, lease: registry.Lease, stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> list[SamplingParams]:
        """Merge the checkpoint's defaults, the fields and a call's keywords; one entry per answer asked for.

        Raises:
            InvalidRequest: a keyword is unknown or a value is out of range.
        """
        unknown = sorted(set(kwargs) - set(SAMPLING))
        if unknown:
            msg = f"unknown keyword {', '.join(map(repr, unknown))}; a call takes {', '.join(SAMPLING)} and stop"
            raise InvalidRequest(msg)
        fields = {name: getattr(self, name) for name in SAMPLING}
        values = {**lease.checkpoint.defaults, **_given(fields), **_given(kwargs)}
        answers = values.pop("n", 1)
        if not isinstance(answers, int) or answers < 1:
            msg = f"n must be a whole number from 1 up, got {answers!r}"
            raise InvalidRequest(msg)
        top = values.pop("top_logprobs", None)
        values["logprobs"] = (top or 0) if values.get("logprobs") or top is not None else None
        values["logit_bias"] = {int(token): bias for token, bias in (values.get("logit_bias") or {}).items()}
        values["stop"] = tuple(stop or self.stop or ())
        values["stop_token_ids"] = tuple(values.get("stop_token_ids") or ())
        params = SamplingParams(**values)
        if params.seed is None or answers == 1:
            return [params] * answers
        return [replace(params, seed=params.seed + index) for index in range(answers)]


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
