"""Chat models: one class per accelerator."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from langchain_accel._chat_model import AccelChatModel
from langchain_accel.devices.ascend import Options as AscendOptions
from langchain_accel.devices.gaudi import Options as GaudiOptions
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
    """Chat model on Intel Gaudi, through optimum-habana or stock transformers; see docs/gaudi.md."""

    device: ClassVar[str] = "gaudi"

    options: GaudiOptions = Field(default_factory=GaudiOptions)
    """Stack, mode, interpreter, prefill lengths and older words; see `GaudiOptions`."""


class ChatInferentia(AccelChatModel):
    """Chat model on AWS Inferentia and Trainium, compiled by optimum-neuron at first use; see docs/inferentia.md."""

    device: ClassVar[str] = "inferentia"

    options: InferentiaOptions = Field(default_factory=InferentiaOptions)
    """Instance type, cache of compiled models and older words; see `InferentiaOptions`."""


class ChatAscend(AccelChatModel):
    """Chat model on Huawei Ascend, with mindformers on MindSpore in a process of its own; see docs/ascend.md."""

    device: ClassVar[str] = "ascend"

    options: AscendOptions = Field(default_factory=AscendOptions)
    """Target, NPU, interpreter, cache of compiled graphs and older words; see `AscendOptions`."""
