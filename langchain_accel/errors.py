"""Every error a user of this package can meet.

Each message says what was asked, what the limit is, and what to change. This module imports nothing, so
that the runtime, the devices and a vendor's own virtual environment can share it.
"""


class AccelError(Exception):
    """Base of every error raised on purpose by this package."""


class DeviceUnavailable(AccelError, ImportError):
    """The accelerator or its software is not on this machine; the message holds the line that installs it."""


class ModelRejected(AccelError, ValueError):
    """A model folder or hub id cannot be used: missing or broken files, or an architecture that cannot work."""


class PlanRejected(AccelError, ValueError):
    """The plan (rows, length, dtype, options) cannot be carried out here: wrong numbers or too little memory."""


class UndeclaredShape(AccelError, RuntimeError):
    """A step asked the device for a shape outside its declared list after warm-up: a bug of this package."""


class StepFailed(AccelError, RuntimeError):
    """The step that computed an answer failed, and the answer with it; the device serves other requests still.

    `__cause__` holds the reason.
    """


class DeviceLost(AccelError, RuntimeError):
    """The device went away, and every answer it computed with it; the next request loads the model again."""


class EngineClosed(AccelError, RuntimeError):
    """The engine was closed before or while it served the request."""


class QueueFull(AccelError, RuntimeError):
    """The bounded waiting queue holds as many requests as it may."""


class InvalidRequest(AccelError, ValueError):
    """A sampling setting, message or keyword of one request is out of its range."""


class PromptTooLong(AccelError, ValueError):
    """The prompt does not fit the declared window.

    Attributes:
        prompt_tokens: tokens in the prompt.
        limit: the longest prompt, in tokens, that this plan serves.
    """

    def __init__(self, message: str, *, prompt_tokens: int, limit: int) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.limit = limit
