"""LangChain's standard suites, and ours for LLMs, on the real mindformers."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, ClassVar

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests

if find_spec("mindformers") is None:
    pytest.skip("needs mindformers: .ci/run builds a virtual environment for it", allow_module_level=True)

from langchain_accel import AccelLLM, AscendLLM, AscendOptions, ChatAscend
from tests.standard.fitted_suites import FittedUnitTests, OnFitted
from tests.standard.test_llms_standard import OnTiny

pytestmark = pytest.mark.timeout(600)


class OnChatAscend(OnFitted):
    """What the suites below are told."""

    chat = ChatAscend
    fields: ClassVar[dict[str, Any]] = {"options": AscendOptions(target="cpu")}


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with OnChatAscend.loaded(tmp_path_factory.mktemp("models")):
        yield


class TestChatAscendUnit(OnChatAscend, FittedUnitTests):
    """Every switch that applies to a local text model is on."""


class TestChatAscend(OnChatAscend, ChatModelIntegrationTests):
    """Every switch is on."""


class TestAscendLLM(OnTiny):
    """The suite of every LLM class of this package."""

    @property
    def llm_class(self) -> type[AccelLLM]:
        return AscendLLM

    @property
    def llm_params(self) -> dict[str, Any]:
        return {**super().llm_params, **OnChatAscend.fields}
