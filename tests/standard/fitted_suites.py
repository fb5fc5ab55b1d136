"""What LangChain's standard suites are told about a chat class of this package: every device says the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_accel import AccelChatModel

FITTED = Path(__file__).parents[1] / "fitted" / "model"


class OnFitted:
    """A chat class on the fitted fixture model, with every switch on that applies to a local text model.

    Attributes:
        chat: the class.
        fields: further fields of its objects, such as its options.
        another: a second folder with the same model.
    """

    chat: ClassVar[type[AccelChatModel]]
    fields: ClassVar[dict[str, Any]] = {}
    another: ClassVar[str]

    @classmethod
    def params(cls, folder: str) -> dict[str, Any]:
        return {"model": folder, "dtype": "float32", "rows": 2, "max_len": 512, "max_tokens": 64, **cls.fields}

    @classmethod
    @contextmanager
    def loaded(cls, scratch: Path) -> Iterator[None]:
        """Keep both models loaded: the suites make a new object for every test."""
        cls.another = str(scratch / "another-model")
        shutil.copytree(FITTED, cls.another)
        kept = [cls.chat(**cls.params(folder)).load() for folder in (str(FITTED), cls.another)]
        yield
        for model in kept:
            model.close()

    @property
    def chat_model_class(self) -> type[AccelChatModel]:
        return self.chat

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


class FittedUnitTests(OnFitted, ChatModelUnitTests):
    """The suite that loads nothing."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": str(FITTED)}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """A local model has no key, no retries and no time-out, and refuses fields it does not know."""
        return {"temperature": 0, "max_tokens": 100, "stop": []}
