"""Our standard tests for LLMs, on the numpy device and on the CPU device."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

from langchain_accel import AccelLLM, XeonLLM
from tests.reference_models import ReferenceLLM
from tests.standard.llm_suite import LLMStandardTests
from tests.tiny_checkpoint import make_tiny_checkpoint


class OnTiny(LLMStandardTests):
    """The suite, on a tiny model with random weights."""

    folder: ClassVar[str]
    another: ClassVar[str]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _loaded(cls, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        """Keep the models loaded: every test makes an object of its own."""
        cls.folder = str(tiny)
        cls.another = str(make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "another", seed=1))
        kept = [cls().make(model=folder).load() for folder in (cls.folder, cls.another)]
        yield
        for model in kept:
            model.close()

    @property
    def llm_params(self) -> dict[str, Any]:
        return {"model": self.folder, "rows": 4, "max_len": 256, "max_tokens": 16, "dtype": "float32"}

    @property
    def other_model(self) -> str:
        return self.another


class TestReferenceLLM(OnTiny):
    """No torch needed."""

    @property
    def llm_class(self) -> type[AccelLLM]:
        return ReferenceLLM


@pytest.mark.skipif(find_spec("torch") is None, reason="the xeon device needs torch")
class TestXeonLLM(OnTiny):
    """The CPU device."""

    @property
    def llm_class(self) -> type[AccelLLM]:
        return XeonLLM
