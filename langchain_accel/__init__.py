"""LangChain models on the accelerator you own: Xeon CPUs, Intel Gaudi, AWS Inferentia, Huawei Ascend.

Names are loaded when first used, so that `import langchain_accel` costs nothing and pulls in no vendor stack.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from langchain_accel._version import __version__

if TYPE_CHECKING:
    from langchain_accel._embedded import embedded_reader
    from langchain_accel._register import register
    from langchain_accel.chat_models import AccelChatModel, ChatAscend, ChatGaudi, ChatInferentia, ChatXeon
    from langchain_accel.devices.ascend import Options as AscendOptions
    from langchain_accel.devices.gaudi import Options as GaudiOptions
    from langchain_accel.devices.inferentia import Options as InferentiaOptions
    from langchain_accel.devices.xeon import Options as XeonOptions
    from langchain_accel.errors import AccelError, PromptTooLong
    from langchain_accel.llms import AccelLLM, AscendLLM, GaudiLLM, InferentiaLLM, XeonLLM

_HOMES = {
    "AccelChatModel": ("chat_models", "AccelChatModel"),
    "ChatXeon": ("chat_models", "ChatXeon"),
    "ChatGaudi": ("chat_models", "ChatGaudi"),
    "ChatInferentia": ("chat_models", "ChatInferentia"),
    "ChatAscend": ("chat_models", "ChatAscend"),
    "AccelLLM": ("llms", "AccelLLM"),
    "XeonLLM": ("llms", "XeonLLM"),
    "GaudiLLM": ("llms", "GaudiLLM"),
    "InferentiaLLM": ("llms", "InferentiaLLM"),
    "AscendLLM": ("llms", "AscendLLM"),
    "AscendOptions": ("devices.ascend", "Options"),
    "GaudiOptions": ("devices.gaudi", "Options"),
    "InferentiaOptions": ("devices.inferentia", "Options"),
    "XeonOptions": ("devices.xeon", "Options"),
    "AccelError": ("errors", "AccelError"),
    "PromptTooLong": ("errors", "PromptTooLong"),
    "embedded_reader": ("_embedded", "embedded_reader"),
    "register": ("_register", "register"),
}

__all__ = [
    "AccelChatModel",
    "AccelError",
    "AccelLLM",
    "AscendLLM",
    "AscendOptions",
    "ChatAscend",
    "ChatGaudi",
    "ChatInferentia",
    "ChatXeon",
    "GaudiLLM",
    "GaudiOptions",
    "InferentiaLLM",
    "InferentiaOptions",
    "PromptTooLong",
    "XeonLLM",
    "XeonOptions",
    "__version__",
    "embedded_reader",
    "register",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    module, attribute = _HOMES[name]
    value = getattr(import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
