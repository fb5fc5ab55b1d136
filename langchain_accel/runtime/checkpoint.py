"""What the runtime itself reads from a model folder: tokenizer, end-of-sequence tokens, sampling defaults."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_accel.errors import InvalidRequest, ModelRejected
from langchain_accel.runtime.request import TokenLogprob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# `model.pt` holds the graphs of a model that was exported for an accelerator; checkpoints have no file of that name.
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "model.pt"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_IMPORTING = threading.Lock()  # transformers' lazy import may fail where two threads are the first to ask for a name
SAMPLING_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model folder, opened.

    Attributes:
        folder: where the files are.
        tokenizer: transformers' tokenizer of the model.
        eos_ids: every token that ends an answer.
        defaults: sampling settings that the folder's `generation_config.json` asks for.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    defaults: dict[str, float]
    # A fast tokenizer may not be used by two threads at once ("Already borrowed", transformers#47085).
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text; thread-safe."""
        with self._lock:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    @property
    def template(self) -> str | None:
        """The tokenizer's chat template; several named ones are joined, for those who look what a model knows."""
        template = self.tokenizer.chat_template
        return "\n".join(template.values()) if isinstance(template, dict) else template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        template: str | None,
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Return the prompt text that the chat template makes of messages, opened for the assistant's answer.

        Args:
            messages: role and content of each, as chat templates read them.
            template: a Jinja chat template to use instead of the tokenizer's own.
            variables: further variables of the template.
            tools: in OpenAI's form, for templates that render tools.

        Raises:
            ModelRejected: the model has no chat template and none was given.
            InvalidRequest: the template refuses these messages.
        """
        if template is None and self.tokenizer.chat_template is None:
            msg = (
                f"the tokenizer in {self.folder} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json): it is a base model; use the LLM class of this device, or pass chat_template="
            )
            raise ModelRejected(msg)
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
                **variables,
            )
        except Exception as error:  # a template is a program: it raises what it likes
            msg = f"the chat template refuses these messages: {type(error).__name__}: {error}"
            raise InvalidRequest(msg) from error
        return text

    def describe(self, entry: TokenLogprob) -> dict[str, Any]:
        """Return a log-probability in the form LangChain and OpenAI use, with tokens as text."""

        def one(token: int, logprob: float) -> dict[str, Any]:
            text = self.tokenizer.decode([token])
            return {"token": text, "bytes": list(text.encode()), "logprob": logprob}

        return {
            **one(entry.token, entry.logprob),
            "top_logprobs": [one(token, logprob) for token, logprob in entry.top],
        }


def resolve(model: str, revision: str | None = None) -> Path:
    """Return the folder of a model: itself, if it is a local folder, else a snapshot from the Hugging Face hub.

    Nothing contacts the network for a local folder.

    Raises:
        ModelRejected: there is no such folder, and it is no hub id or the hub does not give it.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not HUB_ID.fullmatch(model) or folder.exists():
        msg = f"model={model!r} is not a folder; give the folder that holds config.json, or a hub id such as 'org/name'"
        raise ModelRejected(msg)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=HUB_FILES))
    except Exception as error:
        msg = (
            f"model={model!r} is neither a local folder nor a model that could be fetched from the hub "
            f"({type(error).__name__}: {error}); check the spelling, or download it and give the folder"
        )
        raise ModelRejected(msg) from error


def open_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Read tokenizer and generation settings of a model folder.

    Raises:
        ModelRejected: the folder has no `config.json` or no tokenizer, or one of the files is broken.
    """
    config = _read_json(folder / "config.json")
    if config is None:
        msg = f"{folder} has no config.json, so it is not a model folder"
        raise ModelRejected(msg)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        msg = (
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}): copy the tokenizer files of the "
            "original model into it, for example with AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
        raise ModelRejected(msg)
    with _IMPORTING:
        from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:
        msg = f"the tokenizer in {folder} cannot be loaded: {type(error).__name__}: {error}"
        raise ModelRejected(msg) from error
    generation = _read_json(folder / "generation_config.json") or {}
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    candidates = [*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id]
    return Checkpoint(
        folder=folder,
        tokenizer=tokenizer,
        eos_ids=frozenset(token for token in candidates if isinstance(token, int)),
        defaults=_defaults(generation),
    )


def _defaults(generation: dict[str, Any]) -> dict[str, float]:
    """Sampling settings of a `generation_config.json`, by transformers' rule: without `do_sample` it is greedy."""
    settings = {"temperature": 1.0, **generation} if generation.get("do_sample") else generation
    names = SAMPLING_DEFAULTS if generation.get("do_sample") else ("repetition_penalty",)
    return {name: settings[name] for name in names if settings.get(name) is not None}


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise ModelRejected(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} must hold a JSON object, it holds {type(content).__name__}"
        raise ModelRejected(msg)
    return content
