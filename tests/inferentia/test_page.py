"""The page on Inferentia: its code runs, its table holds the plans that fit."""

from __future__ import annotations

import builtins
import re
from pathlib import Path

import pytest

pytest.importorskip("optimum.neuron", reason="needs optimum-neuron: .ci/run builds a virtual environment for it")

from langchain_accel import ChatInferentia
from langchain_accel.devices.inferentia.plan import INSTANCES, Layout, Numbers, check
from tests.tiny_checkpoint import make_tiny_checkpoint

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "inferentia.md").read_text(encoding="utf-8")
MODELS = {
    "8B": Numbers(32, 4096, 14336, 32, 8, 128, 128256),
    "13B": Numbers(40, 5120, 13824, 40, 40, 128, 32000),
    "70B": Numbers(80, 8192, 28672, 64, 8, 128, 128256),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_chatbot_talks_until_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's own lines on a tiny model; the conversation outgrows the window and goes on.

    Mutant: without `trim_messages` the third question raises `PromptTooLong`.
    """
    folder = make_tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=512)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    questions = iter(["What is the weather in Paris today? " * 3] * 4 + [""])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(questions))
    names: dict[str, object] = {}
    chatbot, older = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    smaller = {"NousResearch/Llama-2-13b-chat-hf": str(folder), "=24": "=2", "=2048": "=256", "256)": "64)"}
    source = chatbot.replace("max_tokens=256", "max_tokens=64").replace("llm.max_len - 256", "llm.max_len - 64")
    for word, other in smaller.items():
        source = source.replace(word, other)
    exec(source, names)
    model = names["llm"]
    assert isinstance(model, ChatInferentia)
    assert model.stats().finished == 4
    assert len(capsys.readouterr().out.splitlines()) >= 1
    model.close()
    exec(older, names)


def test_every_example_of_the_table_fits_its_instance() -> None:
    """Mutant: 15 rows instead of 4 for 8B on 2 cores."""
    examples = 0
    for line in PAGE.split("## Which instance")[1].split("\n\n")[1].splitlines()[2:]:
        names, cores, memory, fits = (cell.strip() for cell in line.strip("|").split("|"))
        for name in re.findall(r"`([\w.]+)`", names):
            instance = INSTANCES[name]
            assert (instance.cores, instance.core_bytes // 2**30) == (int(cores), int(memory.split()[0]))
            for model, split, rows, length in re.findall(r"(\w+B) on (\d+) cores(?:, (\d+) rows? x (\d+))?", fits):
                check(MODELS[model], Layout(int(rows or 1), int(length or 2048), int(split), 2), instance, 0.7)
                examples += 1
    assert examples >= 9
    assert set(INSTANCES) == set(re.findall(r"`((?:inf|trn)\w+\.\w+)`", PAGE))
