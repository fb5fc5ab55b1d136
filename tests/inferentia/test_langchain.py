"""LangChain's standard suites, and ours for LLMs, on the real optimum-neuron."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests

pytest.importorskip("optimum.neuron", reason="needs optimum-neuron: .ci/run builds a virtual environment for it")

from langchain_accel import AccelLLM, ChatInferentia, InferentiaLLM, InferentiaOptions
from tests.standard.fitted_suites import FittedUnitTests, OnFitted
from tests.standard.test_llms_standard import OnTiny


class OnChatInferentia(OnFitted):
    """What the suites below are told."""

    chat = ChatInferentia


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    OnChatInferentia.fields = {"options": InferentiaOptions(cache_dir=str(tmp_path_factory.mktemp("exported")))}
    with OnChatInferentia.loaded(tmp_path_factory.mktemp("models")):
        yield


class TestChatInferentiaUnit(OnChatInferentia, FittedUnitTests):
    """Every switch that applies to a local text model is on."""


class TestChatInferentia(OnChatInferentia, ChatModelIntegrationTests):
    """Every switch is on, but for details of usage: this device reuses no prompt tokens."""


class TestInferentiaLLM(OnTiny):
    """The suite of every LLM class of this package."""

    @property
    def llm_class(self) -> type[AccelLLM]:
        return InferentiaLLM

    @property
    def llm_params(self) -> dict[str, Any]:
        return {**super().llm_params, **OnChatInferentia.fields}
