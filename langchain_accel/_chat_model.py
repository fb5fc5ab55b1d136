"""The chat model that every accelerator's class is: one path for sync, async, stream and batch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, cast
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.outputs import ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ContextThreadPoolExecutor
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field

from langchain_accel._answer import AnswerReader, Ask
from langchain_accel._calls import MOST_THREADS, side_by_side, single, translated
from langchain_accel._messages import to_template
from langchain_accel._settings import AccelSettings
from langchain_accel._structured import OUTPUT, Method, OutputForm, ToolGrammar, structured_output
from langchain_accel.errors import InvalidRequest
from langchain_accel.runtime.batch import Job, acomplete, complete
from langchain_accel.runtime.registry import Lease


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

    streaming: bool = False
    """Let `invoke` stream inside, so that its callbacks hear every token. (Default: False)"""

    tool_format: str | None = None
    """How the model writes tool calls: `"hermes"`, `"llama3"`, `"mistral"` or `"mistral_args"`. (Default: what the
    chat template shows)"""

    tool_grammar: ToolGrammar = "auto"
    """`"auto"`: from the moment the model opens a call, a grammar binds it to a tool and its schema; `"forced"`: only
    calls that `tool_choice` demands are bound. (Default: `"auto"`)"""

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
            "tool_format": self.tool_format,
            "tool_grammar": self.tool_grammar,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return cast("LangSmithParams", {**super()._get_ls_params(stop=stop, **kwargs), **self._ls_params(stop, kwargs)})

    # ------------------------------------------------------------------ one path: prompt, engine, answer

    def _ask(self, lease: Lease, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> Ask:
        kwargs = {name: value for name, value in kwargs.items() if name not in ("stream", "stream_usage", "strict")}
        model = kwargs.pop("model", None) or self.model
        variables = {**self.chat_template_kwargs, **kwargs.pop("chat_template_kwargs", {})}
        output = {name: kwargs.pop(name) for name in OUTPUT if name in kwargs}
        checkpoint = lease.checkpoint
        template = self.chat_template or checkpoint.template
        form = OutputForm.of(output, template, self.tool_format, self.tool_grammar)
        text = checkpoint.render(to_template(messages), self.chat_template, variables, form.tools)
        prompt = checkpoint.encode(text, add_special_tokens=False)
        grammar, visible = form.grammar(checkpoint.tokenizer, text), form.visible(checkpoint.tokenizer)
        sampling = self._sampling(lease, stop, kwargs)
        if form.whole:
            sampling = [form.unstopped(params, stop) for params in sampling]
        jobs = [Job(prompt, params, grammar, visible) for params in sampling]
        return Ask(jobs, lambda: AnswerReader(model, checkpoint, form.splitter(text)))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - a whole answer has no token events
        **kwargs: Any,
    ) -> ChatResult:
        lease = self._engine_lease(kwargs.get("model"))
        with translated():
            ask = self._ask(lease, messages, stop, kwargs)
            return ask.result(complete(lease.engine, ask.jobs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002 - a whole answer has no token events
        **kwargs: Any,
    ) -> ChatResult:
        lease = await self._aengine_lease(kwargs.get("model"))
        with translated():
            ask = self._ask(lease, messages, stop, kwargs)
            return ask.result(await acomplete(lease.engine, ask.jobs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        lease = self._engine_lease(kwargs.get("model"))
        with translated():
            ask = self._ask(lease, messages, stop, kwargs)
            stream, reader = lease.engine.submit(*single(ask.jobs)), ask.reader()
        with closing(stream):
            for delta in stream:
                if chunk := reader.read(delta.text, delta.logprobs, delta.finish):
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        lease = await self._aengine_lease(kwargs.get("model"))
        with translated():
            ask = self._ask(lease, messages, stop, kwargs)
            stream, reader = lease.engine.submit(*single(ask.jobs)), ask.reader()
        with closing(stream):
            async for delta in stream:
                if chunk := reader.read(delta.text, delta.logprobs, delta.finish):
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    # ------------------------------------------------------------------ many at once

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer all inputs together, whatever the width of LangChain's thread pool would be."""
        configs = side_by_side(config, len(inputs))
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        run_id: UUID | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer all conversations together; LangChain's own `generate` answers one after the other."""
        one: Callable[..., LLMResult] = partial(super().generate, stop=stop, callbacks=callbacks, **kwargs)
        if len(messages) <= 1:
            return one(messages, run_id=run_id)
        with ContextThreadPoolExecutor(max_workers=min(len(messages), MOST_THREADS)) as pool:
            ids = [run_id, *[None] * (len(messages) - 1)]
            results = list(pool.map(lambda conversation, each: one([conversation], run_id=each), messages, ids))
        return LLMResult(
            generations=[generations for result in results for generations in result.generations],
            llm_output=self._combine_llm_outputs([result.llm_output for result in results]),
            run=[run for result in results for run in result.run or []] or None,
        )

    # ------------------------------------------------------------------ tools and structured output

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with tools it may call.

        Args:
            tools: functions, pydantic or TypedDict classes, LangChain tools, or OpenAI-style dictionaries.
            tool_choice: `"auto"` or None lets the model choose; `"any"`, `"required"` or True makes it call one;
                a name, or `{"type": "function", "function": {"name": ...}}`, makes it call that one; `"none"` hides
                the tools.
            parallel_tool_calls: whether one answer may hold several calls. (Default: yes)
            strict: noted in the schemas, for templates that read it; a grammar enforces them in any case.
            **kwargs: further keywords of the calls.
        """
        bound = {"tools": [convert_to_openai_tool(tool, strict=strict) for tool in tools], **kwargs}
        if tool_choice is not None:
            bound["tool_choice"] = tool_choice
        if parallel_tool_calls is not None:
            bound["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(**bound)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type[Any],
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Return this model with answers that follow a schema; see `structured_output` for the arguments.

        Raises:
            InvalidRequest: an argument is unknown.
        """
        if kwargs:
            unknown = ", ".join(map(repr, kwargs))
            msg = f"unknown argument {unknown}; with_structured_output takes include_raw, method and strict"
            raise InvalidRequest(msg)
        return structured_output(self, schema, method, include_raw=include_raw, strict=strict)

    # ------------------------------------------------------------------ what the model can do, and counting

    def _resolve_model_profile(self) -> ModelProfile:
        return {
            "max_input_tokens": self.max_len - 1,
            "max_output_tokens": min(self.max_tokens or self.max_len, self.max_len - 1),
            "text_inputs": True,
            "text_outputs": True,
            "tool_calling": True,
            "tool_choice": True,
            "structured_output": True,
            "temperature": True,
        }

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Return the tokens that these messages, and tools, take in the window, the template's own included."""
        output = {"tools": [convert_to_openai_tool(tool) for tool in tools]} if tools else {}
        return len(self._ask(self._engine_lease(), convert_to_messages(messages), None, output).jobs[0].prompt)
