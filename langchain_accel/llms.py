"""Text completion models: one class per accelerator, on the same engine as the chat models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LangSmithParams, LanguageModelInput
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import Field

from langchain_accel._calls import side_by_side, single, translated
from langchain_accel._settings import AccelSettings
from langchain_accel._structured import CONSTRAINTS, explicit_grammar
from langchain_accel.devices.ascend import Options as AscendOptions
from langchain_accel.devices.gaudi import Options as GaudiOptions
from langchain_accel.devices.inferentia import Options as InferentiaOptions
from langchain_accel.devices.xeon import Options as XeonOptions
from langchain_accel.runtime.batch import Job, acomplete, complete
from langchain_accel.runtime.registry import Lease
from langchain_accel.runtime.request import Finish, TokenLogprob
from langchain_accel.runtime.stream import Completion

_keywords: ContextVar[Mapping[str, Any] | None] = ContextVar("_keywords", default=None)
"""Keywords of the call that is being answered: `BaseLLM` leaves them out of its cache's key."""


class AccelLLM(AccelSettings, BaseLLM):
    """A text completion model on the shared device runtime. Use one of its subclasses, each of which names a device.

    Prompts are taken as they are, with the special tokens that the tokenizer adds to plain text. The prompts of one
    call are submitted together.
    """

    model_config = AccelSettings.model_config  # of two bases, pydantic lets the last one win

    @property
    def _llm_type(self) -> str:
        return f"accel-{self.device}"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            "model_name": self.model,
            **self._accel_identity,
            **({"call": call} if (call := _keywords.get()) else {}),
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return cast("LangSmithParams", {**super()._get_ls_params(stop=stop, **kwargs), **self._ls_params(stop, kwargs)})

    def _jobs(self, lease: Lease, prompts: Sequence[str], stop: list[str] | None, kwargs: dict[str, Any]) -> list[Job]:
        """Return one job per prompt and answer asked for (`n`), the answers of a prompt together."""
        grammar = explicit_grammar(kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in ("stream", "model", *CONSTRAINTS)}
        params = self._sampling(lease, stop, kwargs)
        encoded = [lease.checkpoint.encode(prompt, add_special_tokens=True) for prompt in prompts]
        return [Job(prompt, one, grammar) for prompt in encoded for one in params]

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - a whole answer has no token events
        **kwargs: Any,
    ) -> LLMResult:
        lease = self._engine_lease(kwargs.get("model"))
        with translated():
            jobs = self._jobs(lease, prompts, stop, kwargs)
            return self._result(lease, len(prompts), complete(lease.engine, jobs), kwargs.get("model"))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002 - a whole answer has no token events
        **kwargs: Any,
    ) -> LLMResult:
        lease = await self._aengine_lease(kwargs.get("model"))
        with translated():
            jobs = self._jobs(lease, prompts, stop, kwargs)
            return self._result(lease, len(prompts), await acomplete(lease.engine, jobs), kwargs.get("model"))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        lease = self._engine_lease(kwargs.get("model"))
        with translated():
            stream = lease.engine.submit(*single(self._jobs(lease, [prompt], stop, kwargs)))
        with closing(stream):
            for delta in stream:
                chunk = self._chunk(lease, delta.text, delta.logprobs, delta.finish, kwargs.get("model"))
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        lease = await self._aengine_lease(kwargs.get("model"))
        with translated():
            stream = lease.engine.submit(*single(self._jobs(lease, [prompt], stop, kwargs)))
        with closing(stream):
            async for delta in stream:
                chunk = self._chunk(lease, delta.text, delta.logprobs, delta.finish, kwargs.get("model"))
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    # ------------------------------------------------------------------ many at once, and the cache

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Answer all prompts together. Keywords are part of the cache's key."""
        with _in_the_key(kwargs):
            return super().generate(prompts, stop, callbacks, **kwargs)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """As `generate`, in an event loop."""
        with _in_the_key(kwargs):
            return await super().agenerate(prompts, stop, callbacks, **kwargs)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Answer all inputs together. With `return_exceptions` a bad prompt costs its own answer only."""
        if not return_exceptions:
            return super().batch(inputs, config, **kwargs)
        configs = side_by_side(config, len(inputs))
        return Runnable.batch(self, inputs, configs, return_exceptions=True, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """As `batch`, in an event loop."""
        if not return_exceptions:
            return await super().abatch(inputs, config, **kwargs)
        return await Runnable.abatch(self, inputs, config, return_exceptions=True, **kwargs)

    def _result(
        self, lease: Lease, prompts: int, completions: Sequence[Completion], model: str | None = None
    ) -> LLMResult:
        answers = len(completions) // prompts if prompts else 0
        generations = [
            [
                Generation(
                    text=completion.text,
                    generation_info=self._info(lease, completion.logprobs, completion.finish, model),
                )
                for completion in completions[first : first + answers]
            ]
            for first in range(0, len(completions), max(answers, 1))
        ]
        finishes = [completion.finish for completion in completions]
        usage = _usage(finishes)
        return LLMResult(generations=generations, llm_output={"token_usage": usage, "model_name": model or self.model})

    def _chunk(
        self, lease: Lease, text: str, logprobs: Sequence[TokenLogprob], finish: Finish | None, model: str | None
    ) -> GenerationChunk:
        return GenerationChunk(text=text, generation_info=self._info(lease, logprobs, finish, model))

    def _info(
        self, lease: Lease, logprobs: Sequence[TokenLogprob], finish: Finish | None, model: str | None
    ) -> dict[str, Any] | None:
        info: dict[str, Any] = {}
        if logprobs:
            info["logprobs"] = [lease.checkpoint.describe(entry) for entry in logprobs]
        if finish is not None:
            name = model or self.model
            info |= {"finish_reason": finish.reason, "model_name": name, "token_usage": _usage([finish])}
        return info or None


class XeonLLM(AccelLLM):
    """Text completion on the CPUs of this machine, with torch.

    Example:
        ```python
        from langchain_accel import XeonLLM

        llm = XeonLLM(model="path/to/model", rows=16, max_len=4096)
        llm.invoke("Once upon a time")
        ```
    """

    device: ClassVar[str] = "xeon"

    options: XeonOptions = Field(default_factory=XeonOptions)
    """Threads, packing and prefill chunk of the CPU device; see `XeonOptions`."""


class GaudiLLM(AccelLLM):
    """Text completion on Intel Gaudi, through optimum-habana or stock transformers; see docs/gaudi.md."""

    device: ClassVar[str] = "gaudi"

    options: GaudiOptions = Field(default_factory=GaudiOptions)
    """Stack, mode, interpreter, prefill lengths and older words; see `GaudiOptions`."""


class InferentiaLLM(AccelLLM):
    """Text completion on AWS Inferentia and Trainium, compiled by optimum-neuron at first use."""

    device: ClassVar[str] = "inferentia"

    options: InferentiaOptions = Field(default_factory=InferentiaOptions)
    """Instance type, cache of compiled models and older words; see `InferentiaOptions`."""


class AscendLLM(AccelLLM):
    """Text completion on Huawei Ascend, with mindformers on MindSpore in a process of its own; see docs/ascend.md."""

    device: ClassVar[str] = "ascend"

    options: AscendOptions = Field(default_factory=AscendOptions)
    """Target, NPU, interpreter, cache of compiled graphs and older words; see `AscendOptions`."""


@contextmanager
def _in_the_key(kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Let the cache's key tell calls with different keywords apart."""
    about_the_run = ("tags", "metadata", "run_name", "run_id")
    call = {name: value for name, value in kwargs.items() if name not in about_the_run}
    token = _keywords.set({"call": call} if call else None)
    try:
        yield
    finally:
        _keywords.reset(token)


def _usage(finishes: Sequence[Finish]) -> dict[str, int]:
    prompt = sum(finish.prompt_tokens for finish in finishes)
    completion = sum(finish.completion_tokens for finish in finishes)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "reused_prompt_tokens": sum(finish.reused_tokens for finish in finishes),
    }
