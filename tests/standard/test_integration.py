"""LangChain's standard suites on `ChatXeon`, with the fitted fixture model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_accel import AccelChatModel, ChatXeon

pytest.importorskip("torch", reason="the xeon device needs torch")

FITTED = Path(__file__).parents[1] / "fitted" / "model"
Detail = Literal["audio_input", "audio_output", "reasoning_output", "cache_read_input", "cache_creation_input"]


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keep the weights of both models loaded: the suites make a new object for every test."""
    other = tmp_path_factory.mktemp("models") / "another-model"
    shutil.copytree(FITTED, other)
    OnFixture.another = str(other)
    kept = [ChatXeon(**OnFixture.params(str(folder))).load() for folder in (FITTED, other)]
    yield
    for model in kept:
        model.close()


class OnFixture:
    """What every suite below is told about `ChatXeon`."""

    another: ClassVar[str]

    @staticmethod
    def params(folder: str) -> dict[str, Any]:
        return {"model": folder, "dtype": "float32", "rows": 2, "max_len": 512, "max_tokens": 64}

    @property
    def chat_model_class(self) -> type[AccelChatModel]:
        return ChatXeon

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.params(str(FITTED))

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def returns_usage_metadata(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.another

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[Detail]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}


class TestChatXeonUnit(OnFixture, ChatModelUnitTests):
    """Every switch that applies to a local text model is on."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": str(FITTED)}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """A local model has no key, no retries and no time-out, and refuses fields it does not know."""
        return {"temperature": 0, "max_tokens": 100, "stop": []}


class TestChatXeon(OnFixture, ChatModelIntegrationTests):
    """Every switch that applies to a local text model is on; structured output is JSON by grammar."""

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        """Ask twice: the second time the prompt is in the cache."""
        model = self.chat_model_class(**self.chat_model_params)
        messages = [HumanMessage("Write me 2 haikus. Only include the haikus.")]
        model.invoke(messages)
        if not stream:
            return model.invoke(messages)
        first, *rest = model.stream(messages)
        return sum(rest, first)


class TestChatXeonStructuredByTools(TestChatXeon):
    """The same, with structured output by a forced tool call."""

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "function_calling"}
