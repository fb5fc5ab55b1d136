"""LangChain's standard suites on `ChatXeon`, with the fitted fixture model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_accel import ChatXeon
from tests.standard.fitted_suites import FittedUnitTests, OnFitted

pytest.importorskip("torch", reason="the xeon device needs torch")

Detail = Literal["audio_input", "audio_output", "reasoning_output", "cache_read_input", "cache_creation_input"]


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with OnXeon.loaded(tmp_path_factory.mktemp("models")):
        yield


class OnXeon(OnFitted):
    """What the suites below are told."""

    chat = ChatXeon

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[Detail]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}


class TestChatXeonUnit(OnXeon, FittedUnitTests):
    """Every switch that applies to a local text model is on."""


class TestChatXeon(OnXeon, ChatModelIntegrationTests):
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
