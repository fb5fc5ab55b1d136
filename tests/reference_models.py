"""The model classes on the reference device: everything above the cut line, without torch."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from langchain_accel import AccelChatModel, AccelLLM
from langchain_accel.devices.reference import Options


class ChatReference(AccelChatModel):
    """Chat model on the slow numpy device."""

    device: ClassVar[str] = "reference"

    options: Options = Field(default_factory=Options)


class ReferenceLLM(AccelLLM):
    """Text completion on the slow numpy device."""

    device: ClassVar[str] = "reference"

    options: Options = Field(default_factory=Options)
