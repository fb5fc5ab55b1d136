"""What the vendors' tutorials do by script, each as one command, with the tokens that transformers gives.

On tiny models of the tutorials' architectures and on this machine's processors. The Llama-2 chatbot that is exported
and loaded again is in tests/inferentia/test_cli.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the jobs run on the xeon device")
pytest.importorskip("typer", reason="the command line is an extra")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from langchain_accel.cli.app import app
from tests.cli.conftest import read_jsonl, write_jsonl
from tests.tiny_models import make

POSITIONS = 512


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("seeds")
    longer = {"max_position_embeddings": POSITIONS}
    return {
        "llama": make("llama", root / "llama", **longer),
        "bloom": make("bloom", root / "bloom"),
        "falcon": make("falcon-old", root / "falcon", **longer),
    }


def run(command: str, folder: Path, *args: str | Path, stdin: str | None = None) -> Any:
    where = ["--model", folder, "--dtype", "float32", "--max-len", "128", "--device-option", "threads=1"]
    result = CliRunner().invoke(app, [command, *map(str, (*where, *args))], input=stdin)
    assert result.exit_code == 0, result.output
    return result


def plain(folder: Path, prompts: list[list[int]], new: int) -> list[str]:
    """Return what transformers' own `generate` makes of each prompt by itself."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            done = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new)
        answers.append(tokenizer.decode(done[0, len(prompt) :], skip_special_tokens=True))
    return answers


def test_the_text_generation_script(folders: dict[str, Path]) -> None:
    """optimum-habana's `run_generation.py` on Llama, in its own words, several prompts of unequal length at once."""
    folder = folders["llama"]
    prompts = ["The quick brown fox", "What is the capital", "One two three four five six"]
    older = ["--use_hpu_graphs", "--use_kv_cache", "--max_new_tokens", "12", "--n_iterations", "2"]
    done = run("generate", folder, *[word for prompt in prompts for word in ("--prompt", prompt)], *older, "--json")
    said = json.loads(done.stdout)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = plain(folder, [tokenizer.encode(prompt) for prompt in prompts], 12)
    assert [result["text"] for result in said["results"]] == expected
    assert said["timing"]["tokens_per_second"] > 0
    for word in older[:2]:
        assert f"{word}: not needed" in done.stderr


def test_bloomz_latency(folders: dict[str, Path], tmp_path: Path) -> None:
    """The post's method: 7 tokens in, 100 greedy tokens out, one at a time; against transformers."""
    done = run("bench", folders["bloom"], "--workload", "latency", "--repeats", "1", "--json")
    ours, theirs, *_ = json.loads(done.stdout)["measured"]
    assert (ours["workload"], ours["peer"], theirs["peer"]) == ("latency", "langchain-accel", "transformers")
    assert ours["tokens"] == theirs["tokens"] == 100
    assert theirs["wall_ratio"] == pytest.approx(theirs["wall"][0] / ours["wall"][0])


def test_bloomz_completes_a_dataset(folders: dict[str, Path], tmp_path: Path) -> None:
    """The post's completion: the first 16 tokens of each text, 50 new ones. Mutant seen to fail: the last 16 kept."""
    texts = [f"Number {index}: {'the quick brown fox jumps over the lazy dog ' * (index % 4)}" for index in range(12)]
    out, folder = tmp_path / "completed.jsonl", folders["bloom"]
    source = write_jsonl(tmp_path / "texts.jsonl", texts)
    limits = ["--max_input_tokens", "16", "--truncate", "--max_new_tokens", "50"]
    run("generate", folder, "--dataset", source, "--out", out, *limits, "--rows", "4")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = plain(folder, [tokenizer.encode(text)[:16] for text in texts], 50)
    assert [result["text"] for result in read_jsonl(out)] == expected


def test_the_falcon_loop(folders: dict[str, Path]) -> None:
    """A prompt, an answer, the time; again until the user leaves; `/reset` between, so that each stands alone."""
    folder = folders["falcon"]
    questions = ["What is the capital of France?", "Who jumps over the lazy dog?"]
    said = run(
        "chat", folder, "--max-new-tokens", "10", "--json", stdin=f"{questions[0]}\n/reset\n{questions[1]}\n/exit\n"
    )
    answers = [json.loads(line) for line in said.stdout.splitlines() if line.startswith("{")]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [
        tokenizer.encode(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            ),
            add_special_tokens=False,
        )
        for question in questions
    ]
    assert [answer["content"] for answer in answers] == plain(folder, prompts, 10)
    assert all(answer["seconds"] >= answer["first_token_seconds"] > 0 for answer in answers)
