"""LangChain's standard suites, and ours for LLMs, on the real mindformers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, ClassVar

import pytest

if find_spec("mindformers") is None:
    pytest.skip("needs mindformers: .ci/run builds a virtual environment for it", allow_module_level=True)

from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_accel import AccelChatModel, AccelLLM, AscendLLM, AscendOptions, ChatAscend
from tests.standard.test_integration import FITTED
from tests.standard.test_llms_standard import OnTiny

pytestmark = pytest.mark.timeout(600)

OPTIONS = AscendOptions(target="cpu")


@pytest.fixture(scope="module", autouse=True)
def _kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two model folders of the same content, and both engines kept: suites make many objects."""
    Fitted.another = str(tmp_path_factory.mktemp("models") / "another-model")
    shutil.copytree(FITTED, Fitted.another)
    kept = [ChatAscend(**Fitted.params(str(folder))).load() for folder in (FITTED, Fitted.another)]
    yield
    for model in kept:
        model.close()


class Fitted:
    """What the suites are told about `ChatAscend`."""

    another: ClassVar[str]

    @classmethod
    def params(cls, folder: str) -> dict[str, Any]:
        fields = {"dtype": "float32", "rows": 2, "max_len": 512, "max_tokens": 64}
        return {"model": folder, "options": OPTIONS, **fields}

    @property
    def chat_model_class(self) -> type[AccelChatModel]:
        return ChatAscend

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


class TestChatAscendUnit(Fitted, ChatModelUnitTests):
    """Every switch that applies to a local text model is on."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": str(FITTED)}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """A local model has no key, no retries and no time-out, and refuses fields it does not know."""
        return {"temperature": 0, "max_tokens": 100, "stop": []}


class TestChatAscend(Fitted, ChatModelIntegrationTests):
    """Every switch is on."""


class TestAscendLLM(OnTiny):
    """The suite of every LLM class of this package."""

    @property
    def llm_class(self) -> type[AccelLLM]:
        return AscendLLM

    @property
    def llm_params(self) -> dict[str, Any]:
        return {**super().llm_params, "options": OPTIONS}
