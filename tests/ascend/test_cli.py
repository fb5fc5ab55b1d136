"""The tutorial's Llama-2 on Ascend by one command, in the tutorial's own words where they still mean something."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("mindformers") is None:
    pytest.skip("needs mindformers: .ci/run builds a virtual environment for it", allow_module_level=True)
pytest.importorskip("typer", reason="the command line is an extra")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from langchain_accel.cli.app import app
from tests.tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.timeout(600)

PROMPT = "I believe the meaning of life is"


@pytest.mark.filterwarnings("ignore:use_past=True is an older word")
def test_a_llama_answers_from_the_command_line(tmp_path: Path) -> None:
    """Greedy, as transformers answers. Mutant seen to fail: the device's options not handed on."""
    folder = make_tiny_checkpoint(tmp_path / "llama", max_position_embeddings=128)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        whole = model.float().generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)[0]
    words = ["generate", "--device", "ascend", "--model", str(folder), "--prompt", PROMPT, "--max-new-tokens", "12"]
    options = ["--device-option", "target=cpu", "--device-option", "use_past=True", "--json"]
    done = CliRunner().invoke(app, [*words, *options, "--dtype", "float32", "--max-len", "64"])
    assert done.exit_code == 0, done.output
    (said,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert said["results"][0]["text"] == tokenizer.decode(whole[ids.shape[1] :], skip_special_tokens=True)
