"""LangChain's standard suites, and ours for LLMs, on the real optimum-habana."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_accel import AccelLLM, ChatGaudi, GaudiLLM
from tests.gaudi.helpers import needs_optimum, options
from tests.standard.fitted_suites import FittedUnitTests, OnFitted
from tests.standard.test_llms_standard import OnTiny

pytestmark = needs_optimum


class OnChatGaudi(OnFitted):
    """What the suites below are told."""

    chat = ChatGaudi


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    OnChatGaudi.fields = {"options": options()}
    with OnChatGaudi.loaded(tmp_path_factory.mktemp("models")):
        yield


class TestChatGaudiUnit(OnChatGaudi, FittedUnitTests):
    """Every switch that applies to a local text model is on."""


class TestChatGaudi(OnChatGaudi, ChatModelIntegrationTests):
    """Every switch is on, but for details of usage: this device reuses no prompt tokens."""


class TestGaudiLLM(OnTiny):
    """The suite of every LLM class of this package."""

    @property
    def llm_class(self) -> type[AccelLLM]:
        return GaudiLLM

    @property
    def llm_params(self) -> dict[str, Any]:
        return {**super().llm_params, **OnChatGaudi.fields}
