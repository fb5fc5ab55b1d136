"""What the start weights see before the first step: turns, sentences that hardly differ, tools and their arguments."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from tools.reader.circuits import HEAD, flag, part  # noqa: E402
from tools.reader.facts import Facts  # noqa: E402
from tools.reader.tokens import encode  # noqa: E402
from tools.reader.toolcalls import ToolCalls  # noqa: E402

TURNS = (
    (
        "user",
        "The ferry leaves the harbour at nine. The boat stays until noon. Where does one buy tickets for the ferry?",
    ),
    ("assistant", "One buys tickets for the ferry in the small office behind the station."),
    ("user", "And the boat?"),
)


@contextmanager
def without(model: object, layer: int, head: int) -> Iterator[None]:
    """The model without what a head of a layer says."""
    output = model.model.layers[layer].self_attn.o_proj.weight
    kept = output.detach().clone()
    with torch.no_grad():
        output[:, head * HEAD : (head + 1) * HEAD] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            output.copy_(kept)


def stream(model: object, tokens: list[int], layer: int) -> object:
    """What comes into a layer, `[T, HIDDEN]`."""
    with torch.inference_mode():
        return model.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[layer][0]


def test_answers_and_requests_are_told_apart(fresh: tuple) -> None:
    """Mutant: the head that looks for the turn looks among all tokens."""
    model, tokenizer = fresh
    pieces = [(f"<|im_start|>{role}\n{text}<|im_end|>", role) for role, text in TURNS]
    tokens, roles = [], []
    for text, role in pieces:
        piece = tokenizer.encode(text, add_special_tokens=False)
        tokens += piece
        roles += ["none", *[role] * (len(piece) - 1)]
    seen = stream(model, tokens, 2)
    for name, role in (("mine", "assistant"), ("asked", "user")):
        for value, own in zip(seen[:, flag(name)][:, 0].tolist(), roles, strict=True):
            if own != "none":
                assert (value > 0.8) == (own == role)
                assert value > 0.8 or value < 0.2


def test_an_answer_is_copied_from_the_request_and_not_from_itself(fresh: tuple) -> None:
    """Two tokens stand in the request and in the answer, each time before another one.

    Mutant: the copying heads do not mind whose words they copy.
    """
    model, tokenizer = fresh
    facts, rng, right = Facts(random.Random(5)), random.Random(5), 0
    opening, turn = (
        tokenizer.encode(text, add_special_tokens=False)
        for text in ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    )
    for _ in range(20):
        passage = tokenizer.encode(facts.filler() + " " + facts.filler(), add_special_tokens=False)
        at = rng.randrange(4, len(passage) - 4)
        other = [token for token in passage if token not in passage[at - 2 : at + 1]]
        said = [*rng.sample(other, 4), *passage[at - 2 : at], *rng.sample(other, 4), *passage[at - 2 : at]]
        with torch.inference_mode():
            guess = int(model(torch.tensor([opening + passage + turn + said])).logits[0, -1].argmax())
        right += guess == passage[at]
    assert right >= 16


def test_sentences_that_hardly_differ_have_different_marks(fresh: tuple) -> None:
    """Mutant: marks of all words of the last line, not of some."""
    model, tokenizer = fresh
    facts, alike = Facts(random.Random(6)), []
    for _ in range(24):
        fact = facts.fact({})
        text = " ".join([facts.filler(), fact.sentence, *(facts.variant(fact).sentence for _ in range(3))])
        tokens = tokenizer.encode("<|im_start|>user\n" + text, add_special_tokens=False)
        seen = stream(model, tokens, 2)
        marks = seen[seen[:, flag("opens")][:, 0] > 0.7, part("sentence")]
        for one, other in pairwise(marks):
            alike.append(float(torch.cosine_similarity(one, other, dim=0)))
    assert sum(alike) / len(alike) < 0.3


def told(model: object, tokenizer: object, seed: int) -> Iterator[tuple[list[str], list[str], list[bool]]]:
    """Conversations with a call: their tokens' texts, what the model says after each, and which are learnt."""
    made = ToolCalls(random.Random(seed))
    for _ in range(25):
        tokens, learnt = encode(tokenizer, made.conversation(fitting=1.0))
        with torch.inference_mode():
            guesses = model(torch.tensor([tokens])).logits[0].argmax(-1)
        yield *([tokenizer.decode([token]) for token in ids] for ids in (tokens, guesses)), learnt


def begun(model: object, tokenizer: object) -> tuple[float, float, float]:
    """Share of tool names, and of the names and numbers among their arguments, whose first token the model says.

    And the share of arguments that it begins with a space.
    """
    right, count, spaced = [0, 0], [0, 0], 0
    for text, guesses, learnt in told(model, tokenizer, 7):
        for at in range(2, len(text) - 1):
            if learnt[at] and text[at - 1] == '":' and text[at] in (' "', " ") and not text[at + 1][:1].islower():
                kind = 1
            elif learnt[at] and text[at - 2 : at + 1] == ["name", '":', ' "']:
                kind = 0
            else:
                continue
            count[kind] += 1
            right[kind] += guesses[at] == text[at + 1]
            spaced += kind and guesses[at].startswith(" ")
    return right[0] / count[0], right[1] / count[1], spaced / count[1]


def test_tools_and_arguments_are_found_before_the_first_step(fresh: tuple) -> None:
    """Mutants: a space before a value; the heads that find them say nothing, in the second half of this test."""
    model, tokenizer = fresh
    names, values, spaced = begun(model, tokenizer)
    assert names > 0.7
    assert values > 0.2
    assert spaced < 0.1
    with without(model, 2, 2):
        assert begun(model, tokenizer)[0] < 0.4
    with without(model, 3, 1):
        assert begun(model, tokenizer)[1] < 0.1


def typed(model: object, tokenizer: object) -> float:
    """Share of arguments before whose value the model says what their type asks for: a quote, a space or a truth."""
    right = count = 0
    for text, guesses, learnt in told(model, tokenizer, 8):
        for at in range(2, len(text) - 1):
            if learnt[at] and text[at] == '":' and text[at - 1] not in ("name", "arguments"):
                count += 1
                right += guesses[at] == text[at + 1] or {guesses[at], text[at + 1]} == {" true", " false"}
    return right / count


def test_a_quote_comes_before_text_and_none_before_numbers(fresh: tuple) -> None:
    """Mutants: types that do not know their key, and colons that do not look for types, in the second half."""
    model, tokenizer = fresh
    assert typed(model, tokenizer) > 0.9
    with without(model, 0, 3):
        assert typed(model, tokenizer) < 0.8
    with without(model, 3, 2):
        assert typed(model, tokenizer) < 0.1
