"""From a device's name to a loaded model, with the time that took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from time import perf_counter
from typing import Any, ClassVar, TypeVar

from pydantic import Field

from langchain_accel._settings import AccelSettings
from langchain_accel.chat_models import AccelChatModel, ChatAscend, ChatGaudi, ChatInferentia, ChatXeon
from langchain_accel.devices.base import Progress, silent
from langchain_accel.devices.reference import Options as ReferenceOptions
from langchain_accel.errors import DeviceUnavailable, InvalidRequest
from langchain_accel.llms import AccelLLM, AscendLLM, GaudiLLM, InferentiaLLM, XeonLLM
from langchain_accel.runtime import registry
from langchain_accel.runtime.request import SamplingParams


class ChatReference(AccelChatModel):
    """Chat model on the reference device: slow numpy, float64, any machine. For checks, not for service."""

    device: ClassVar[str] = "reference"

    options: ReferenceOptions = Field(default_factory=ReferenceOptions)


class ReferenceLLM(AccelLLM):
    """Text completion on the reference device: slow numpy, float64, any machine. For checks, not for service."""

    device: ClassVar[str] = "reference"

    options: ReferenceOptions = Field(default_factory=ReferenceOptions)


Made = TypeVar("Made", bound=AccelSettings)

LLMS: dict[str, type[AccelLLM]] = {
    cls.device: cls for cls in (XeonLLM, GaudiLLM, InferentiaLLM, AscendLLM, ReferenceLLM)
}
CHATS: dict[str, type[AccelChatModel]] = {
    cls.device: cls for cls in (ChatXeon, ChatGaudi, ChatInferentia, ChatAscend, ChatReference)
}


def llm(device: str, **fields: Any) -> AccelLLM:
    """Return the text completion model of a device; nothing is loaded. Fields that are None keep their default.

    Args:
        device: its name.
        **fields: the model's fields; `options` may be a mapping from names to values, which may be strings.

    Raises:
        DeviceUnavailable: there is no such device in this release.
        InvalidRequest: the device has no option of a name.
        ValueError: a field is unknown or out of range.
    """
    return _made(LLMS, device, fields)


def chat(device: str, **fields: Any) -> AccelChatModel:
    """Return the chat model of a device; otherwise as `llm`."""
    return _made(CHATS, device, fields)


def _made(classes: Mapping[str, type[Made]], device: str, given: Mapping[str, Any]) -> Made:
    if device not in classes:
        msg = f"no device is called {device!r}; choose one of {', '.join(classes)}"
        raise DeviceUnavailable(msg)
    cls = classes[device]
    if isinstance(options := given.get("options"), Mapping):
        known = [field.name for field in fields(cls.model_fields["options"].annotation)]  # type: ignore[arg-type]
        if unknown := [name for name in options if name not in known]:
            msg = f"the {device} device has no option {', '.join(unknown)}; its options are {', '.join(known)}"
            raise InvalidRequest(msg)
    return cls(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready.

    Attributes:
        model: the model object.
        lease: its hold on the engine.
        sampling: its sampling settings, with the checkpoint's own where it leaves them open.
        load_seconds: reading and placing the weights.
        warm_up_seconds: running every declared shape once.
    """

    model: AccelLLM | AccelChatModel
    lease: registry.Lease
    sampling: SamplingParams
    load_seconds: float
    warm_up_seconds: float

    def close(self) -> None:
        """Let go of the weights."""
        self.lease.close()
        self.model.close()


def load(model: AccelLLM | AccelChatModel, progress: Progress = silent) -> Loaded:
    """Load a model's weights and warm its device up; errors as `AccelSettings.load`."""
    began = perf_counter()
    warming: list[float] = []

    def timed(stage: str, done: int, total: int) -> None:
        if stage.startswith("warming up") and not warming:
            warming.append(perf_counter())
        progress(stage, done, total)

    # The private parts of our own model classes: what they would do at their first call, with a clock beside it.
    lease = registry.shared(model._plan(None), timed)  # noqa: SLF001
    ended = perf_counter()
    warm_from = warming[0] if warming else ended
    try:
        [sampling] = model._sampling(lease, None, {})  # noqa: SLF001
    except BaseException:
        lease.close()
        raise
    return Loaded(model, lease, sampling, warm_from - began, ended - warm_from)
