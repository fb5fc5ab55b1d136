"""Chat models: one class per accelerator."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from langchain_accel._chat_model import AccelChatModel
from langchain_accel.devices.inferentia import Options as InferentiaOptions
from langchain_accel.devices.xeon import Options as XeonOptions

__all__ = ["AccelChatModel", "ChatAscend", "ChatGaudi", "ChatInferentia", "ChatXeon"]


class ChatXeon(AccelChatModel):
    """Chat model on the CPUs of this machine, with torch.

    Example:
        ```python
        from langchain_accel import ChatXeon

        llm = ChatXeon(model="path/to/model", rows=16, max_len=4096)
        llm.invoke("Why is the sky blue?")
        ```
    """

    device: ClassVar[str] = "xeon"

    options: XeonOptions = Field(default_factory=XeonOptions)
    """Threads, packing and prefill chunk of the CPU device; see `XeonOptions`."""


class ChatGaudi(AccelChatModel):
    """Chat model on Intel Gaudi. Not in this release: making one raises `DeviceUnavailable`."""

    device: ClassVar[str] = "gaudi"


class ChatInferentia(AccelChatModel):
    """Chat model on AWS Inferentia and Trainium, compiled by optimum-neuron at first use; see docs/inferentia.md."""

    device: ClassVar[str] = "inferentia"

    options: InferentiaOptions = Field(default_factory=InferentiaOptions)
    """Instance type, cache of compiled models and older words; see `InferentiaOptions`."""


class ChatAscend(AccelChatModel):
    """Chat model on Huawei Ascend. Not in this release: making one raises `DeviceUnavailable`."""

    device: ClassVar[str] = "ascend"
