"""`generate`: prompts in, the library's own answers out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from langchain_accel.cli import INSTALL
from langchain_accel.cli.models import CHATS, LLMS
from langchain_accel.cli.older_words import modern
from langchain_accel.runtime.registry import DEVICES
from tests.reference_models import ReferenceLLM


def expected(tiny: Path, prompts: list[str], **fields) -> list[str]:
    llm = ReferenceLLM(model=str(tiny), max_len=128, **fields)
    try:
        return llm.batch(prompts)
    finally:
        llm.close()


def test_several_prompts_get_the_answers_of_the_library(shell, tiny: Path) -> None:
    prompts = ["The sea", "One two three", "A fox"]
    done = shell(
        "generate", *[word for prompt in prompts for word in ("-p", prompt)], "--max-new-tokens", "12", "--json"
    )
    assert done.exit_code == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [result["text"] for result in results] == expected(tiny, prompts, max_tokens=12)
    assert [(result["index"], result["prompt"]) for result in results] == list(enumerate(prompts))
    assert all(0 < result["completion_tokens"] <= 12 for result in results)


def test_one_prompt_is_streamed_and_timed(shell, tiny: Path) -> None:
    """Mutant seen to fail: only the last delta shown."""
    done = shell("generate", "--prompt", "The sea", "--max-new-tokens", "12")
    assert done.stdout == expected(tiny, ["The sea"], max_tokens=12)[0] + "\n"
    for word in ("load", "warm-up", "first token", "tokens/s"):
        assert word in done.stderr


def test_timing_counts_what_was_made(shell) -> None:
    done = shell("generate", "-p", "The sea", "--max-new-tokens", "5", "--ignore-eos", "--iterations", "3", "--json")
    timing = json.loads(done.stdout)["timing"]
    assert timing["output_tokens"] == 15
    assert len(timing["iterations_tokens_per_second"]) == 3
    assert timing["tokens_per_second"] == pytest.approx(15 / timing["generate_seconds"])
    assert all(timing[f"{name}_seconds"] > 0 for name in ("load", "warm_up", "first_token_p50"))


def test_a_file_has_a_prompt_per_line_and_standard_input_is_one(shell, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("The sea\n\nA fox\n", "utf-8")
    done = shell("generate", "--file", file, "--max-new-tokens", "3", "--json")
    assert [result["prompt"] for result in json.loads(done.stdout)["results"]] == ["The sea", "A fox"]
    done = shell("generate", "--max-new-tokens", "3", "--json", stdin="The sea\nand the stars")
    assert [result["prompt"] for result in json.loads(done.stdout)["results"]] == ["The sea\nand the stars"]


def test_sampling_options_reach_the_model(shell, tiny: Path) -> None:
    """Mutant seen to fail: `seed` not handed on."""
    options = ["--temperature", "0.9", "--top-k", "40", "--top-p", "0.95", "--seed", "7", "--repetition-penalty", "1.2"]
    done = shell("generate", "-p", "The sea", "-p", "The sea", "--max-new-tokens", "9", *options, "--json")
    fields = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.2, "max_tokens": 9}
    by_hand = [expected(tiny, ["The sea"], seed=seed, **fields)[0] for seed in (7, 8)]
    assert [result["text"] for result in json.loads(done.stdout)["results"]] == by_hand


def test_device_options_reach_the_device(shell, tiny: Path) -> None:
    """Mutant seen to fail: options not handed on."""
    answer = ["generate", "-p", "The sea", "-p", "The sea and", "--max-new-tokens", "3", "--json"]
    reused = [
        json.loads(shell(*answer, "--iterations", "2", *options).stdout)["timing"]["reused_prompt_tokens"]
        for options in ([], ["--device-option", "resumes=false", "--device-option", "copies=false"])
    ]
    assert reused[0] > reused[1] == 0
    done = shell("generate", "-p", "a", "--device-option", "speed=9", "--json")
    assert "no option speed; its options are prefill_shapes" in json.loads(done.stdout)["error"]["message"]
    done = shell("generate", "-p", "a", "--device-option", "drafts=many", "--json")
    assert done.exit_code == 2
    assert "options.drafts: Input should be a valid integer" in json.loads(done.stdout)["error"]["message"]
    for words in (["threads"], ["drafts=1", "drafts=2"]):
        done = shell("generate", "-p", "a", *[word for each in words for word in ("--device-option", each)])
        assert done.exit_code == 2


def test_replicas_answer_alike(shell, tiny: Path) -> None:
    """Two processes with the model. Mutant seen to fail: replicas not handed on."""
    prompts = ["The sea", "One two three", "A fox"]
    words = [word for prompt in prompts for word in ("-p", prompt)]
    done = shell("generate", *words, "--max-new-tokens", "9", "--replicas", "2", "--rows", "1", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert [result["text"] for result in said["results"]] == expected(tiny, prompts, max_tokens=9)
    assert said["timing"]["rows"] == 2


def test_a_prompt_over_the_limit_is_refused_with_its_length(shell) -> None:
    """Mutant seen to fail: the limit not checked."""
    done = shell("generate", "-p", "fox", "-p", "The sea and the stars", "--max-input-tokens", "4", "--json")
    assert done.exit_code == 1
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "PromptTooLong"
    assert "prompt 1 has 9 tokens; the limit is 4" in error["message"]
    assert "--truncate" in error["message"]


def test_a_prompt_is_cut_only_where_that_was_asked_for_and_it_is_said(shell, tiny: Path) -> None:
    limited = ["--max-input-tokens", "4", "--truncate", "--max-new-tokens", "6"]
    done = shell("generate", "-p", "The sea and the stars", *limited, "--json")
    [result] = json.loads(done.stdout)["results"]
    assert (result["prompt_tokens"], result["cut_tokens"]) == (4, 5)
    assert "the last 5 of 9 tokens were cut" in done.stderr
    [kept] = json.loads(shell("generate", "-p", "The sea", "--max-new-tokens", "6", "--json").stdout)["results"]
    assert kept["prompt_tokens"] == 4
    assert result["text"] == kept["text"]


def test_a_limit_beyond_the_window_is_refused(shell) -> None:
    done = shell("generate", "-p", "fox", "--max-input-tokens", "128")
    assert done.exit_code == 1
    assert "1 to 127 tokens" in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["--prompt", "a", "--file", "b"],
        ["--dataset", "a.jsonl"],
        ["--prompt", "a", "--out", "b.jsonl"],
        ["--prompt", "a", "--truncate"],
        ["--dataset", "a.jsonl", "--out", "b.jsonl", "--iterations", "2"],
        ["--prompt", "a", "--no-such-option"],
        [],
    ],
)
def test_misuse_is_told_before_anything_is_loaded(shell, args: list[str]) -> None:
    done = shell("generate", *args, stdin="")
    assert done.exit_code == 2
    assert done.stdout == ""


def test_a_missing_device_or_model_is_one_line_and_exit_code_1(shell, tmp_path: Path) -> None:
    done = shell("generate", "-p", "a", "--model", tmp_path / "nothing")
    assert done.exit_code == 1
    assert "ModelRejected" in done.stderr
    assert "Traceback" not in done.stderr
    done = shell("generate", "-p", "a", "--device", "ascend")
    assert done.exit_code in (0, 1)
    assert done.exit_code == 0 or 'langchain-accel[ascend]"' in done.stderr.replace("\n", "")


def test_older_words_are_understood_with_a_note_each(shell, tiny: Path) -> None:
    """The options of optimum-habana's text-generation script. Mutant seen to fail: `--max_new_tokens` dropped."""
    older = [
        "--use_hpu_graphs",
        "--use_kv_cache",
        "--max_new_tokens",
        "6",
        "--max_input_tokens=90",
        "--n_iterations",
        "2",
    ]
    done = shell("generate", "-p", "The sea", *older)
    assert done.stdout == expected(tiny, ["The sea"], max_tokens=6)[0] + "\n"
    for word in ("--use_hpu_graphs: not", "--use_kv_cache: not", "now --max-new-tokens", "now --iterations"):
        assert word in done.stderr


def test_older_words_become_todays() -> None:
    words, notes = modern(["--bf16", "--max_new_tokens=5", "--prompt", "x", "--", "--bf16"])
    assert words == ["--dtype", "bfloat16", "--max-new-tokens=5", "--prompt", "x", "--", "--bf16"]
    assert len(notes) == 2


def test_every_device_has_its_classes_here() -> None:
    from langchain_accel.cli.options import DeviceName

    assert set(DEVICES) == set(LLMS) == set(CHATS) == {name.value for name in DeviceName}


def test_without_typer_the_line_that_installs_it_is_told() -> None:
    code = "import sys; sys.modules['typer'] = None; from langchain_accel.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert INSTALL in done.stderr
    assert "Traceback" not in done.stderr
