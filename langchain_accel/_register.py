"""LangChain's `init_chat_model`, on request."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_accel.chat_models import AccelChatModel

PROVIDERS = {"xeon": "ChatXeon", "gaudi": "ChatGaudi", "inferentia": "ChatInferentia", "ascend": "ChatAscend"}

KEPT = 4
"""Models that stay loaded for configurable models; the least recently used one goes first."""

_kept: OrderedDict[tuple[type, str], AccelChatModel] = OrderedDict()
_kept_lock = threading.Lock()


def register() -> None:
    """Let `langchain.chat_models.init_chat_model("xeon:path/to/model")` make this package's chat models.

    LangChain has no entry point for packages it does not ship, so this adds to its table of providers; nothing happens
    before you call it. A configurable model, which LangChain makes anew for every call, keeps its weights: the same
    settings give the same object, for the last few settings used.

    Raises:
        ImportError: the package `langchain` is not installed.
    """
    from langchain.chat_models import base

    for provider, name in PROVIDERS.items():
        base._BUILTIN_PROVIDERS[provider] = ("langchain_accel", name, _make)  # noqa: SLF001 - there is no public way


def _make(cls: type[AccelChatModel], **kwargs: Any) -> AccelChatModel:
    key = (cls, repr(sorted(kwargs.items())))
    with _kept_lock:
        model = _kept.pop(key, None) or cls(**kwargs)
        _kept[key] = model
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return model
