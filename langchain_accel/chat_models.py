"""Chat models: one class per accelerator, one path for sync, async, stream and batch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, ClassVar, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from pydantic import Field

from langchain_accel._messages import to_template
from langchain_accel._settings import AccelSettings, single, translated
from langchain_accel.devices.xeon import Options as XeonOptions
from langchain_accel.errors import InvalidRequest
from langchain_accel.runtime.batch import Job, acomplete, complete
from langchain_accel.runtime.registry import Lease
from langchain_accel.runtime.request import Finish, TokenLogprob
from langchain_accel.runtime.stream import Completion

MOST_THREADS = 256


class AccelChatModel(AccelSettings, BaseChatModel):
    """A chat model on the shared device runtime. Use one of its subclasses, each of which names a device.

    Prompts are rendered by the model's own chat template. All calls, from any thread or event loop, feed one
    continuously batching engine; leaving a stream early or cancelling a task frees its row within one step.
    """

    model_config = AccelSettings.model_config  # of two bases, pydantic lets the last one win

    chat_template: str | None = None
    """Jinja chat template to use instead of the model's own. (Default: the model's own)"""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables for the chat template, such as `{"enable_thinking": False}`. (Default: none)"""

    @property
    def _llm_type(self) -> str:
        return f"accel-chat-{self.device}"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            "model_name": self.model,
            **self._accel_identity,
            "chat_template": self.chat_template,
            "chat_template_kwargs": self.chat_template_kwargs,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return cast("LangSmithParams", {**super()._get_ls_params(stop=stop, **kwargs), **self._ls_params(stop, kwargs)})

    # ------------------------------------------------------------------ one path: prompt, engine, convert

    def _jobs(
        self, lease: Lease, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> list[Job]:
        """Return one job per answer asked for (`n`)."""
        kwargs = {name: value for name, value in kwargs.items() if name not in ("stream", "stream_usage")}
        template_kwargs = {**self.chat_template_kwargs, **kwargs.pop("chat_template_kwargs", {})}
        prompt = self._prompt(lease, messages, template_kwargs)
        return [(prompt, params) for params in self._sampling(lease, stop, kwargs)]

    def _prompt(self, lease: Lease, messages: list[BaseMessage], template_kwargs: Mapping[str, Any]) -> list[int]:
        text = lease.checkpoint.render(to_template(messages), self.chat_template, template_kwargs)
        return lease.checkpoint.encode(text, add_special_tokens=False)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - a whole answer has no token events
        **kwargs: Any,
    ) -> ChatResult:
        lease = self._engine_lease()
        with translated():
            return self._result(lease, complete(lease.engine, self._jobs(lease, messages, stop, kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002 - a whole answer has no token events
        **kwargs: Any,
    ) -> ChatResult:
        lease = await self._aengine_lease()
        with translated():
            return self._result(lease, await acomplete(lease.engine, self._jobs(lease, messages, stop, kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        lease = self._engine_lease()
        with translated():
            stream = lease.engine.submit(*single(self._jobs(lease, messages, stop, kwargs)))
        with closing(stream):
            for delta in stream:
                chunk = self._chunk(lease, delta.text, delta.logprobs, delta.finish)
                if run_manager:
                    run_manager.on_llm_new_token(delta.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        lease = await self._aengine_lease()
        with translated():
            stream = lease.engine.submit(*single(self._jobs(lease, messages, stop, kwargs)))
        with closing(stream):
            async for delta in stream:
                chunk = self._chunk(lease, delta.text, delta.logprobs, delta.finish)
                if run_manager:
                    await run_manager.on_llm_new_token(delta.text, chunk=chunk)
                yield chunk

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer all inputs together.

        LangChain's own `batch` runs as many threads as a machine has cores and four; here that many would leave rows
        idle, so unless `max_concurrency` is set every input is submitted at once.
        """
        configs = config if isinstance(config, list) else [config or {}] * len(inputs)
        width = min(max(len(inputs), 1), MOST_THREADS)
        configs = [one if one.get("max_concurrency") else {**one, "max_concurrency": width} for one in configs]
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    # ------------------------------------------------------------------ what LangChain gets to see

    def _result(self, lease: Lease, completions: Sequence[Completion]) -> ChatResult:
        generations = []
        for completion in completions:
            chunk = self._chunk(lease, completion.text, completion.logprobs, completion.finish)
            message = AIMessage(
                content=completion.text,
                response_metadata=chunk.generation_info or {},
                usage_metadata=_usage(completion.finish),
            )
            generations.append(ChatGeneration(message=message, generation_info=chunk.generation_info))
        return ChatResult(generations=generations, llm_output={"model_name": self.model})

    def _chunk(
        self, lease: Lease, text: str, logprobs: Sequence[TokenLogprob], finish: Finish | None
    ) -> ChatGenerationChunk:
        message = AIMessageChunk(content=text)
        info: dict[str, Any] = {}
        if logprobs:
            info["logprobs"] = {"content": [lease.checkpoint.describe(entry) for entry in logprobs]}
        if finish is not None:
            info |= {"finish_reason": finish.reason, "model_name": self.model, "model_provider": "langchain-accel"}
            message.usage_metadata = _usage(finish)
            message.chunk_position = "last"
        return ChatGenerationChunk(message=message, generation_info=info or None)

    # ------------------------------------------------------------------ counting with the model's own tokenizer

    def get_token_ids(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._engine_lease().checkpoint.encode(text, add_special_tokens=False)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Return the tokens that these messages take in the window, the template's own included."""
        if tools:
            msg = "counting tools is not supported yet: this release renders no tools"
            raise InvalidRequest(msg)
        return len(self._prompt(self._engine_lease(), messages, self.chat_template_kwargs))


class ChatXeon(AccelChatModel):
    """Chat model on the CPUs of this machine, with torch.

    Example:
        ```python
        from langchain_accel import ChatXeon

        llm = ChatXeon(model="path/to/model", rows=16, max_len=4096)
        llm.invoke("Why is the sky blue?")
        ```
    """

    device: ClassVar[str] = "xeon"

    options: XeonOptions = Field(default_factory=XeonOptions)
    """Threads, packing and prefill chunk of the CPU device; see `XeonOptions`."""


class ChatGaudi(AccelChatModel):
    """Chat model on Intel Gaudi. Not in this release: making one raises `DeviceUnavailable`."""

    device: ClassVar[str] = "gaudi"


class ChatInferentia(AccelChatModel):
    """Chat model on AWS Inferentia and Trainium. Not in this release: making one raises `DeviceUnavailable`."""

    device: ClassVar[str] = "inferentia"


class ChatAscend(AccelChatModel):
    """Chat model on Huawei Ascend. Not in this release: making one raises `DeviceUnavailable`."""

    device: ClassVar[str] = "ascend"


def _usage(finish: Finish) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=finish.prompt_tokens,
        output_tokens=finish.completion_tokens,
        total_tokens=finish.prompt_tokens + finish.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=finish.reused_tokens),
    )
