"""What a user may set on this device, and the words of MindFormers' tutorials and yaml files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from langchain_accel.errors import ModelRejected, PlanRejected

if TYPE_CHECKING:
    from langchain_accel.devices.base import Plan

OLD_WORDS: Mapping[str, str] = MappingProxyType(
    {"seq_length": "max_len", "batch_size": "rows", "load_checkpoint": "model"}
)
"""Words of MindFormers' tutorials, and the field of a model class that each is today."""

TARGETS = ("ascend", "cpu")

_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}
_OLD_NAME = re.compile(r"(llama2?|llama3(_1)?|glm[234]?|chatglm\d?|qwen\d?(_5)?|baichuan2?|internlm2?|yi|gpt2)_\d+b\w*")
_SMALLEST_CHUNK = 16


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may set on this device.

    Attributes:
        target: `"ascend"`, or `"cpu"` to run the same models slowly on MindSpore's CPU backend, in float32: for trying
            things out where there is no NPU.
        device_id: NPU of this machine that the model runs on, of several the first; None for 0.
        python: interpreter of the virtual environment that has MindSpore; None for this process's own. The model runs
            in a process of its own either way: MindSpore's settings are those of a whole process.
        block_size: columns of a KV-cache block; PagedAttention reads whole blocks.
        prefill_chunk: longest piece of a prompt that one step takes, in tokens.
        max_device_memory: what MindSpore may take of an NPU, such as `"58GB"`; None for its own default.
        compile_cache: keep compiled graphs on disk, so that a later start need not compile them.
        cache_dir: folder that keeps them; None for `langchain-accel/ascend` in the user's cache folder.
        config_file: older word: a yaml file of MindFormers; what it says of lengths, batch, dtype, device and ranks is
            taken over where it is not said here.
        seq_length: older word for the model's `max_len`.
        batch_size: older word for the model's `rows`.
        load_checkpoint: older word for `model`.
        use_past: older word; only True is served.
    """

    target: str = "ascend"
    device_id: int | None = None
    python: str | None = None
    block_size: int = 32
    prefill_chunk: int = 256
    max_device_memory: str | None = None
    compile_cache: bool = True
    cache_dir: str | None = None
    config_file: str | None = None
    seq_length: int | None = None
    batch_size: int | None = None
    load_checkpoint: str | None = None
    use_past: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what means nothing, and name today's word for each older one.

        Raises:
            PlanRejected: a value is out of its range.
        """
        if self.target not in TARGETS:
            msg = f"target must be one of {', '.join(map(repr, TARGETS))}, got {self.target!r}"
            raise PlanRejected(msg)
        if (self.device_id or 0) < 0:
            msg = f"device_id must be at least 0, got {self.device_id}"
            raise PlanRejected(msg)
        if self.block_size < 1 or self.prefill_chunk < _SMALLEST_CHUNK:
            msg = (
                f"block_size must be at least 1 and prefill_chunk at least {_SMALLEST_CHUNK} tokens, got "
                f"{self.block_size} and {self.prefill_chunk}"
            )
            raise PlanRejected(msg)
        _require_past(self.use_past)
        for word, today in OLD_WORDS.items():
            if (value := getattr(self, word)) is not None:
                _note(word, value, f"write {today}={value!r}")
        if self.use_past is not None:
            _note("use_past", self.use_past, "leave it out, the KV cache is always on")

    def renamed(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Options]:
        """Return what older words say of a model's own fields, and the options in today's words.

        Args:
            given: values of a model's fields that the user set.

        Raises:
            PlanRejected: an older word and today's say different things, or the yaml file cannot be used.
            ModelRejected: the model is a name that MindFormers once knew.
        """
        if _OLD_NAME.fullmatch(str(given.get("model", ""))):
            msg = (
                f"model={given['model']!r} is a name that MindFormers knew before its version 1.6, with weights it no "
                "longer offers; give the folder of a Hugging Face checkpoint, or a hub id such as "
                "'NousResearch/Llama-2-7b-hf'"
            )
            raise ModelRejected(msg)
        file = _read(self.config_file) if self.config_file is not None else {}
        words = {word: getattr(self, word) for word in OLD_WORDS if getattr(self, word) is not None}
        said = {OLD_WORDS[word]: (word, value) for word, value in words.items()}
        for today, value in file.items():
            if today not in _FILE_OPTIONS:
                said.setdefault(today, (f"{self.config_file}: {today}", value))
        for today, (word, value) in said.items():
            if given.get(today, value) != value:
                msg = f"{word}={value!r} and {today}={given[today]!r} contradict each other; keep {today}"
                raise PlanRejected(msg)
        kept = {name: file[name] for name in _FILE_OPTIONS if name in file and getattr(self, name) is None}
        none: dict[str, Any] = dict.fromkeys((*OLD_WORDS, "use_past", "config_file"))
        return {today: value for today, (_, value) in said.items()}, replace(self, **none, **kept)


def translated(plan: Plan, options: Options) -> tuple[Plan, Options]:
    """Return plan and options in today's words. What a plan leaves at its default counts as not set."""
    given = {field.name: getattr(plan, field.name) for field in fields(plan)}
    defaults = {field.name: field.default for field in fields(plan)}
    said, options = options.renamed({name: value for name, value in given.items() if value != defaults[name]})
    return replace(plan, options=options, **said), options


_FILE_OPTIONS = ("device_id", "max_device_memory")


def _read(file: str) -> dict[str, Any]:
    """Return what a yaml file of MindFormers says, in today's words.

    Raises:
        PlanRejected: it cannot be read, or asks for what is not served.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
        context, parallel = content.get("context") or {}, content.get("parallel_config") or {}
        model = (content.get("model") or {}).get("model_config") or {}
        dtype = model.get("compute_dtype")
        found = {
            "max_len": model.get("seq_length"),
            "rows": model.get("batch_size"),
            "dtype": None if dtype is None else _DTYPES[dtype],
            "tensor_parallel_size": parallel.get("model_parallel") if content.get("use_parallel") else None,
            "device_id": context.get("device_id"),
            "max_device_memory": context.get("max_device_memory"),
        }
    except (OSError, AttributeError, KeyError, yaml.YAMLError) as error:
        msg = f"config_file={file!r} is not a yaml file of MindFormers that can be used: {error}"
        raise PlanRejected(msg) from error
    _require_past(model.get("use_past"))
    return {name: value for name, value in found.items() if value is not None}


def _require_past(use_past: bool | None) -> None:  # noqa: FBT001
    if use_past is False:
        msg = "use_past=False is not served: the KV cache is always on; leave the word out"
        raise PlanRejected(msg)


def _note(word: str, value: Any, instead: str) -> None:
    warnings.warn(f"{word}={value!r} is an older word: {instead}, beside model=", FutureWarning, stacklevel=4)
