"""LangChain's `init_chat_model`."""

from __future__ import annotations

from pathlib import Path

import pytest

langchain = pytest.importorskip("langchain.chat_models")

from langchain_accel import ChatXeon, _register, register  # noqa: E402
from tests.reference_models import ChatReference  # noqa: E402


def test_a_registered_provider_makes_our_class() -> None:
    register()
    model = langchain.init_chat_model("xeon:some/folder", max_tokens=7)
    assert isinstance(model, ChatXeon)
    assert model.model == "some/folder"
    assert model.max_tokens == 7


def test_a_configurable_model_keeps_its_weights(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain makes the object anew for every call. Mutant seen to fail: `_make` makes a new object each time."""
    monkeypatch.setitem(_register.PROVIDERS, "xeon", "ChatReference")
    monkeypatch.setattr("langchain_accel.ChatReference", ChatReference, raising=False)
    register()
    langchain.base._get_chat_model_creator.cache_clear()
    configurable = langchain.init_chat_model(
        f"xeon:{tiny}", configurable_fields=("temperature",), rows=2, max_len=64, max_tokens=2
    )
    configurable.invoke("hi")
    (kept,) = [model for model in _register._kept.values() if isinstance(model, ChatReference)]
    engine = kept._engine_lease().engine
    del kept  # or the test itself would keep the weights
    configurable.invoke("hi")
    configurable.invoke("hi", config={"configurable": {"temperature": 0.5}})
    assert not engine.closed
    assert {model._engine_lease().engine for model in _register._kept.values() if isinstance(model, ChatReference)} == {
        engine
    }
    assert engine.stats().finished == 3
    _register._kept.clear()
    monkeypatch.undo()
    register()
    langchain.base._get_chat_model_creator.cache_clear()
