"""LangChain's standard unit tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_accel import AccelChatModel
from tests.reference_models import ChatReference


class TestChatReference(ChatModelUnitTests):
    """Every switch that applies to a local model is on."""

    @pytest.fixture(autouse=True)
    def _folder(self, tiny: Path) -> None:
        type(self).folder = str(tiny)

    folder = "unset"

    @property
    def chat_model_class(self) -> type[AccelChatModel]:
        return ChatReference

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self.folder, "rows": 4, "max_len": 256}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """A local model has no key, no retries and no time-out, and refuses fields it does not know."""
        return {"temperature": 0, "max_tokens": 100, "stop": []}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def returns_usage_metadata(self) -> bool:
        return True
