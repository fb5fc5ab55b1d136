"""Training: copying works from the start, a run goes on where it stopped, and the same seed gives the same model."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tools.reader import train  # noqa: E402
from tools.reader.circuits import HEAD, part  # noqa: E402
from tools.reader.data import Batches  # noqa: E402
from tools.reader.facts import Facts  # noqa: E402
from tools.reader.reading import Reading, Size  # noqa: E402
from tools.reader.start import paces  # noqa: E402
from tools.reader.tokens import encode  # noqa: E402


def copied(model: object, tokenizer: object) -> float:
    """Share of tokens that the model copies when a passage stands twice in a turn."""
    facts = Facts(random.Random(3))
    passage = tokenizer.encode(" ".join(facts.filler() for _ in range(6)), add_special_tokens=False)
    opening = tokenizer.encode("<|im_start|>user\n", add_special_tokens=False)
    tokens = torch.tensor([opening + passage + passage])
    with torch.inference_mode():
        guesses = model(tokens).logits.argmax(-1)[0]
    first = len(opening) + len(passage)
    return float((guesses[first + 4 : -1] == tokens[0, first + 5 :]).float().mean())


def test_copying_works_before_the_first_step(fresh: tuple) -> None:
    """Mutant: no copying heads, in the next test."""
    model, tokenizer = fresh
    assert copied(model, tokenizer) > 0.7


def test_copying_is_the_work_of_the_copying_heads(fresh: tuple) -> None:
    model, tokenizer = fresh
    for layer in model.model.layers[4:]:
        output = layer.self_attn.o_proj.weight
        kept = output.detach().clone()
        with torch.no_grad():
            output[:, HEAD:] = 0
        layer.kept = kept
    try:
        assert copied(model, tokenizer) < 0.1
    finally:
        for layer in model.model.layers[4:]:
            with torch.no_grad():
                layer.self_attn.o_proj.weight.copy_(layer.kept)


def begun(model: object, tokenizer: object, unanswerable: float) -> float:
    """Share of answers about one passage whose first token the model says."""
    reading, right = Reading(random.Random(4)), 0
    for _ in range(60):
        asked = reading.conversation(Size((1, 1), (7, 9), (1, 1)), unanswerable=unanswerable)
        tokens, learnt = encode(tokenizer, asked)
        first = learnt.index(True)
        with torch.inference_mode():
            right += int(model(torch.tensor([tokens[:first]])).logits[0, -1].argmax()) == tokens[first]
    return right / 60


def test_the_right_sentence_is_found_before_the_first_step(fresh: tuple) -> None:
    """Or "I", where nothing is known. Mutant: no votes, which is the second half of this test."""
    model, tokenizer = fresh
    assert begun(model, tokenizer, 0.0) > 0.35
    assert begun(model, tokenizer, 1.0) > 0.5
    output = model.model.layers[2].self_attn.o_proj.weight
    kept = output.detach().clone()
    try:
        with torch.no_grad():
            output[part("vote")] = 0
        assert begun(model, tokenizer, 0.0) < 0.25
    finally:
        with torch.no_grad():
            output.copy_(kept)


def test_written_weights_stay_as_they_are_while_the_rest_learns() -> None:
    """Mutant: a step that moves them by their share of the rate at once."""
    model, tokenizer = train.start(0, 50)
    model.train()
    paced = paces(model)
    assert {id(weight) for weight, _ in paced} == {id(weight) for weight in model.parameters()}
    before = [weight.detach().clone() for weight, _ in paced]
    batch = Batches(tokenizer, random.Random(0), 2048).next(0.0)
    train.step(model, train.optimiser_of(model), batch, train.Score(), paced, slow=0.0)
    for (weight, free), old in zip(paced, before, strict=True):
        assert torch.equal(weight[free == 0], old[free == 0])
    moved = sum(int((weight != old).sum()) for (weight, _), old in zip(paced, before, strict=True))
    assert moved > 100_000


def run(monkeypatch: pytest.MonkeyPatch, out: Path, tokens: int) -> None:
    monkeypatch.setattr(train, "TEXTS", 200)
    monkeypatch.setattr(
        sys, "argv", ["train.py", str(out), "--tokens", str(tokens), "--threads", "1", "--device", "cpu"]
    )
    try:
        train.main()
        assert float(torch.tensor(1e-40) * 1.0) == 0.0
    finally:
        torch.set_flush_denormal(False)


def test_a_run_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers too small to be normal are zero in a run, or a step takes a CPU twice the time.

    Mutants: the optimiser's state left out of the checkpoint; such numbers kept.
    """
    run(monkeypatch, tmp_path, 6_000)
    first = torch.load(tmp_path / "training.pt", weights_only=True)
    run(monkeypatch, tmp_path, 12_000)
    second = torch.load(tmp_path / "training.pt", weights_only=True)
    assert f"going on after {first['steps']} steps" in capsys.readouterr().out
    assert second["steps"] > first["steps"]
    assert second["tokens"] >= 12_000 > first["tokens"] >= 6_000
    moments = second["optimiser"]["state"][0]
    assert int(moments["step"]) == second["steps"]
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    } <= files
    assert (tmp_path / "model" / "model.safetensors").stat().st_size <= 12e6
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
