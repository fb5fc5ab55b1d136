"""What the runtime reads from a model folder, and what it says about a folder it cannot use."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from langchain_accel.errors import InvalidRequest, ModelRejected
from langchain_accel.runtime.checkpoint import HUB_FILES, Checkpoint, open_checkpoint, resolve
from langchain_accel.runtime.request import TokenLogprob
from tests.unit_tests.devices_for_tests import GUARD

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return open_checkpoint(tiny)


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny folder without weights, to be damaged."""
    copy = tmp_path / "model"
    shutil.copytree(tiny, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    return copy


def write(file: Path, content: Any) -> None:
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def test_a_local_folder_is_itself_and_nothing_asks_the_network(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Sockets are off in these tests; the hub's own function is not called either.

    Mutant seen to fail: the hub asked first.
    """
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert resolve(str(tiny)) == tiny.resolve()
    monkeypatch.chdir(tiny.parent)
    assert resolve(tiny.name) == tiny.resolve()
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert resolve(f"~/{tiny.name}") == tiny.resolve()
    link = tmp_path / "link"
    link.symlink_to(tiny)
    assert resolve(str(link)) == tiny.resolve(), "two names of one folder are one model"
    assert open_checkpoint(tiny).folder == tiny


@pytest.mark.parametrize("model", ["/nowhere/at/all", "./nowhere", "a/b/c", "", "what is this?", "-x/y"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant seen to fail: everything offered to the hub. The empty name is the working folder's own."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    if not model:
        assert resolve(model) == Path.cwd().resolve()
        return
    with pytest.raises(ModelRejected, match=r"is not a folder; give the folder that holds config\.json"):
        resolve(model)


def test_a_file_is_not_a_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant seen to fail: `folder.exists()` left out, so that a relative file name is taken for a hub id."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tiny)
    for model in ("config.json", str(tiny / "config.json")):
        with pytest.raises(ModelRejected, match="is not a folder"):
            resolve(model)


def test_a_hub_id_is_fetched_without_files_nobody_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Mutants seen to fail: the revision dropped; every file fetched."""
    asked: list[tuple[Any, Any]] = []

    def download(*args: Any, **kwargs: Any) -> str:
        asked.append((args, kwargs))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("org/some-model_1.5", "main") == tmp_path
    assert resolve("gpt2") == tmp_path
    assert asked == [
        (("org/some-model_1.5",), {"revision": "main", "allow_patterns": HUB_FILES}),
        (("gpt2",), {"revision": None, "allow_patterns": HUB_FILES}),
    ]


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant seen to fail: the hub's own error let through."""

    def download(*_: Any, **__: Any) -> str:
        msg = "no route to host"
        raise ConnectionError(msg)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelRejected, match=r"'org/name' is neither a local folder nor .*no route to host") as caught:
        resolve("org/name")
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_the_real_hub_client_offline_gives_the_same_error() -> None:
    """Mutant seen to fail: as above."""
    with pytest.raises(ModelRejected, match="could be fetched from the hub"):
        resolve("org/a-model-that-nobody-has")


def damaged(name: str, content: Any) -> Callable[[Path], None]:
    return lambda folder: write(folder / name, content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"has no config\.json, so it is not a model folder"),
        (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
        (damaged("config.json", "{not json"), r"config\.json cannot be read"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\xff"), r"config\.json cannot be read"),
        (damaged("config.json", [1]), r"must hold a JSON object, it holds list"),
        (damaged("generation_config.json", "{"), r"generation_config\.json cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"has no tokenizer \(none of tokenizer\.json"),
        (damaged("tokenizer.json", "{}"), r"tokenizer in .* cannot be loaded"),
    ],
)
def test_a_broken_folder_is_refused_with_the_reason(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    """Mutants seen to fail: `ValueError` not caught in `_read_json`; the check of its type left out; the tokenizer's
    own error let through."""
    damage(folder)
    with pytest.raises(ModelRejected, match=message):
        open_checkpoint(folder)


def test_a_config_that_is_a_folder_is_refused(folder: Path) -> None:
    """Mutant seen to fail: `OSError` not caught."""
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(ModelRejected, match="cannot be read"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": 2}, {7, 4}),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 2}, {7, 8, 4}),
        ({}, {"eos_token_id": 2}, {2, 4}),
        (None, {"eos_token_id": [2, 9]}, {2, 9, 4}),
        (None, {}, {4}),
        ({"eos_token_id": None}, {"eos_token_id": 2}, {4}),
    ],
)
def test_every_token_that_ends_an_answer_is_known(
    folder: Path, generation: dict[str, Any] | None, config: dict[str, Any], expected: set[int]
) -> None:
    """generation_config.json, else config.json, and always the tokenizer's own (here 4).

    Mutants seen to fail: config.json's alone; lists ignored; the tokenizer's left out.
    """
    whole = json.loads((folder / "config.json").read_text("utf-8"))
    whole.pop("eos_token_id")
    write(folder / "config.json", {**whole, **config})
    (folder / "generation_config.json").unlink()
    if generation is not None:
        write(folder / "generation_config.json", generation)
    assert open_checkpoint(folder).eos_ids == expected


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, {}),
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, {"temperature": 0.6, "top_k": 20}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "top_p": None, "min_p": 0.1}, {"temperature": 1.0, "min_p": 0.1}),
        ({}, {}),
    ],
)
def test_sampling_defaults_are_taken_only_where_the_model_asks_to_sample(
    folder: Path, generation: dict[str, Any], expected: dict[str, float]
) -> None:
    """Mutants seen to fail: `do_sample` ignored; null values kept; temperature 0 where none is given."""
    write(folder / "generation_config.json", generation)
    assert open_checkpoint(folder).defaults == expected


def test_a_base_model_without_a_chat_template_says_what_to_do(folder: Path) -> None:
    """A template that is given is used all the same.

    Mutants seen to fail: the check left out; the given template ignored.
    """
    (folder / "chat_template.jinja").unlink()
    base = open_checkpoint(folder)
    with pytest.raises(ModelRejected, match=r"has no chat template .* use the LLM class"):
        base.render([{"role": "user", "content": "Hi"}], None, {})
    assert base.render([{"role": "user", "content": "Hi"}], "{{ messages[0].content }}{{ x }}", {"x": 1}) == "Hi1"


def test_the_rendered_prompt_is_opened_for_the_answer(checkpoint: Checkpoint) -> None:
    """Mutant seen to fail: `add_generation_prompt` left out."""
    text = checkpoint.render([{"role": "user", "content": "Hi"}], None, {})
    assert text == "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", ["{{ raise_exception('no system role') }}", "{{ 1 / 0 }}", "{% if %}"])
def test_a_template_that_raises_is_an_invalid_request(checkpoint: Checkpoint, template: str) -> None:
    """Mutant seen to fail: only jinja's errors caught."""
    with pytest.raises(InvalidRequest, match="the chat template refuses these messages") as caught:
        checkpoint.render([{"role": "user", "content": "Hi"}], template, {})
    assert caught.value.__cause__ is not None


def test_many_threads_encode_at_once(checkpoint: Checkpoint) -> None:
    """A fast tokenizer that is used by two threads at once raises "Already borrowed"; truncation makes it mutable.

    Mutant seen to fail: `encode` without the lock.
    """
    inside = threading.Semaphore(1)
    real = checkpoint.tokenizer.encode
    errors: list[BaseException] = []

    def alone(text: str, **kwargs: Any) -> Any:
        if not inside.acquire(blocking=False):
            msg = "two threads in one tokenizer"
            raise RuntimeError(msg)
        try:
            threading.Event().wait(0.001)
            return real(text, **kwargs)
        finally:
            inside.release()

    def work(number: int) -> None:
        try:
            for _ in range(5):
                assert checkpoint.encode(f"text {number}", add_special_tokens=True) == expected[number]
        except BaseException as error:
            errors.append(error)

    expected = [real(f"text {number}", add_special_tokens=True) for number in range(8)]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    checkpoint.tokenizer.encode = alone
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GUARD)
    finally:
        del checkpoint.tokenizer.encode
    assert errors == []


def test_special_tokens_are_added_on_demand_only(checkpoint: Checkpoint) -> None:
    """Mutant seen to fail: the flag dropped."""
    assert checkpoint.encode("x", add_special_tokens=True)[0] == 1
    assert checkpoint.encode("x", add_special_tokens=False) == checkpoint.encode("x", add_special_tokens=True)[1:]


def test_log_probabilities_are_described_with_text_and_bytes(checkpoint: Checkpoint) -> None:
    """Mutants seen to fail: alternatives left out; characters for bytes."""
    token = checkpoint.encode("z", add_special_tokens=False)[0]
    entry = checkpoint.describe(TokenLogprob(token, -0.5, ((token, -0.5), (4, -2.0))))
    assert entry == {
        "token": "z",
        "bytes": [122],
        "logprob": -0.5,
        "top_logprobs": [
            {"token": "z", "bytes": [122], "logprob": -0.5},
            {"token": "<|im_end|>", "bytes": list(b"<|im_end|>"), "logprob": -2.0},
        ],
    }
