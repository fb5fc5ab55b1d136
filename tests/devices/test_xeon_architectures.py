"""Every architecture: a row step answers what transformers' own `generate` answers, alone and in company.

Each law was seen to fail on the mutant that its docstring names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig

from langchain_accel.devices import xeon
from langchain_accel.devices.base import Device, Logits, Plan
from langchain_accel.devices.memory import column_bytes
from langchain_accel.devices.native.device import NativeDevice
from tests.tiny_models import ARCHITECTURES, POSITIONS, VOCABULARY, WINDOW, make

ROWS = 4
MAX_LEN = POSITIONS  # so that a position past the row is a position past the model's table
ANSWER = 10
SHARED = 13  # tokens that two prompts have in common; more than a window

_random = np.random.default_rng(7)
_long = _random.integers(5, VOCABULARY, 27)
PROMPTS = {
    "short": _random.integers(5, VOCABULARY, 3),
    "middle": _random.integers(5, VOCABULARY, WINDOW + 3),
    "long": _long,
    "fork": np.concatenate([_long[:SHARED], _random.integers(5, VOCABULARY, 6)]),
}
Tokens = Sequence[int] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Served:
    """One architecture, loaded, with what plain transformers answers to each prompt."""

    device: Device
    config: Any
    answers: dict[str, list[int]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[name for name, (kind, _) in ARCHITECTURES.items() if kind in CONFIG_MAPPING])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = make(request.param, tmp_path_factory.mktemp("model"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    answers = {name: generate(model, prompt) for name, prompt in PROMPTS.items()}
    plan = Plan("xeon", str(folder), rows=ROWS, max_len=MAX_LEN, dtype="float32")
    device = xeon.load(plan, xeon.Options(threads=1, prefill_chunk=32))
    yield Served(device, model.config, answers)
    device.close()


def generate(model: Any, prompt: Tokens) -> list[int]:
    """Return transformers' own greedy answer, not ended by any token."""
    model.generation_config.eos_token_id = None
    settings = GenerationConfig(do_sample=False, max_new_tokens=ANSWER, pad_token_id=0)
    tokens = torch.tensor(np.array(prompt))[None]
    output = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=settings)
    return [int(token) for token in output[0, len(prompt) :]]


def prefill(device: Device, *lanes: tuple[int, int, Tokens], width: int = 0, verify: bool = False) -> Logits:
    """Prefill `(row, start, tokens)` lanes in one step, padded on the right with a token that would show."""
    width = max(width, *(len(tokens) for _, _, tokens in lanes))
    padded = np.full((len(lanes), width), 9)
    for index, (_, _, tokens) in enumerate(lanes):
        padded[index, : len(tokens)] = tokens
    rows, starts = np.array([lane[0] for lane in lanes]), np.array([lane[1] for lane in lanes])
    lengths = np.array([len(lane[2]) for lane in lanes])
    logits = (device.verify if verify else device.prefill)(padded, lengths, starts, rows)
    return np.array(logits)


def decode(device: Device, *lanes: tuple[int, int, int]) -> list[int]:
    """Decode `(row, column, token)` lanes in one step and return the next tokens."""
    rows, columns, tokens = (np.array(numbers) for numbers in zip(*lanes, strict=True))
    return [int(token) for token in device.decode(tokens, columns, rows).argmax(-1)]


def finish(device: Device, row: int, column: int, logits: Logits, count: int = ANSWER) -> list[int]:
    """Decode a row alone from the logits at its last prompt token; `column` is the first free one."""
    answer = [int(logits.reshape(-1).argmax())]
    while len(answer) < count:
        answer += decode(device, (row, column + len(answer) - 1, answer[-1]))
    return answer


def scribble(device: Device) -> None:
    """Fill every row with other tokens, so that a column read before it is written shows."""
    for row in range(ROWS):
        for start in (0, 32):
            prefill(device, (row, start, np.full(32, 11 + row)))


def test_the_tiny_models_do_not_repeat_one_token(served: Served) -> None:
    for answer in served.answers.values():
        assert len(set(answer)) >= 3


def test_alone(served: Served) -> None:
    """Mutants: ALiBi slopes of zero; the window ignored; the soft cap ignored."""
    scribble(served.device)
    for row, (name, prompt) in enumerate(PROMPTS.items()):
        logits = prefill(served.device, (row, 0, prompt), width=32)
        assert finish(served.device, row, len(prompt), logits) == served.answers[name]


def test_in_company(served: Served) -> None:
    """Three prompts in one padded prefill, decoded with a padding lane at the tail of a row that is resumed later.

    Mutants: padding written to the arena; padding's positions counted on from the lane before.
    """
    scribble(served.device)
    names = ["short", "middle", "long"]
    idle = prefill(served.device, (3, 0, PROMPTS["fork"]))
    tail = len(PROMPTS["fork"])
    lanes = [(row, 0, PROMPTS[name]) for row, name in enumerate(names)]
    answers = [[int(token)] for token in prefill(served.device, *lanes, width=32).argmax(-1)]
    for step in range(ANSWER - 1):
        running = [(row, len(PROMPTS[name]) + step, answers[row][-1]) for row, name in enumerate(names)]
        for row, token in enumerate(decode(served.device, *running, (3, tail, 9))[:3]):
            answers[row].append(token)
    assert answers == [served.answers[name] for name in names]
    assert finish(served.device, 3, tail, idle) == served.answers["fork"]


@pytest.mark.parametrize("chunks", [(1, 5, 1, 13, 7), (9, 17, 1)])
def test_prefill_in_chunks(served: Served, chunks: tuple[int, ...]) -> None:
    """Odd chunks, past the window, while another row is prefilled in the same steps.

    Mutant: a chunk's causal mask counts its queries from column 0.
    """
    scribble(served.device)
    prompt, other, start = PROMPTS["long"], PROMPTS["middle"], 0
    for step, length in enumerate(chunks):
        lanes = [(2, start, prompt[start : start + length])]
        if step * 5 < len(other):
            lanes.append((0, step * 5, other[step * 5 : step * 5 + 5]))
        logits = prefill(served.device, *lanes)
        start += length
    assert start == len(prompt)
    assert finish(served.device, 2, start, logits[0]) == served.answers["long"]


def test_resumed_after_an_answer(served: Served) -> None:
    """A row that answered one prompt is cut back to what another shares with it, and goes on.

    Mutant: a chunk's padding is written at column 0.
    """
    scribble(served.device)
    long, fork = PROMPTS["long"], PROMPTS["fork"]
    logits = prefill(served.device, (1, 0, long))
    assert finish(served.device, 1, len(long), logits) == served.answers["long"]
    logits = prefill(served.device, (1, SHARED, fork[SHARED:]), width=16)
    assert finish(served.device, 1, len(fork), logits) == served.answers["fork"]


def test_copied_row_diverges(served: Served) -> None:
    """Mutant: one column less is copied."""
    scribble(served.device)
    long, fork = PROMPTS["long"], PROMPTS["fork"]
    logits = prefill(served.device, (0, 0, long))
    served.device.copy_row(0, 3, SHARED)
    other = prefill(served.device, (3, SHARED, fork[SHARED:]))
    assert finish(served.device, 3, len(fork), other) == served.answers["fork"]
    assert finish(served.device, 0, len(long), logits) == served.answers["long"]


def test_verify_equals_decodes(served: Served) -> None:
    """Logits at every drafted token are those of decoding them one by one; a rejected draft leaves no trace.

    Mutant: the logits of the last tokens are returned for each draft.
    """
    scribble(served.device)
    prompt, answer = PROMPTS["middle"], served.answers["middle"]
    prefill(served.device, (0, 0, prompt), (2, 0, prompt))
    draft = [*answer[:3], 5, 6]  # the last two are wrong
    drafted = prefill(served.device, (0, len(prompt), draft), (2, len(prompt), draft[:2]), width=6, verify=True)
    for index, token in enumerate(draft):
        single = served.device.decode(np.array([token]), np.array([len(prompt) + index]), np.array([2]))
        np.testing.assert_allclose(drafted[0, index], single[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(drafted[1, :2], drafted[0, :2], rtol=1e-3, atol=1e-3)
    assert finish(served.device, 0, len(prompt) + 3, drafted[0, 2], ANSWER - 3) == answer[3:]


def test_a_row_can_be_filled_to_its_end(served: Served) -> None:
    """The last column is written and read; padding past it does no harm.

    Mutant: positions of padding are not held inside the row (a learned position fails).
    """
    prompt = np.resize(PROMPTS["long"], MAX_LEN - 3)
    for start in range(0, len(prompt), 16):
        whole = prefill(served.device, (1, start, prompt[start : start + 16]), width=32)
    for start in range(0, len(prompt), 32):
        other = prefill(served.device, (0, start, prompt[start : start + 32]), width=32)
    np.testing.assert_allclose(whole, other, rtol=1e-3, atol=1e-3)
    first, second = finish(served.device, 1, len(prompt), whole, 4), finish(served.device, 0, len(prompt), other, 4)
    assert first == second


def test_memory_is_what_the_config_says(served: Served) -> None:
    if isinstance(served.device, NativeDevice):
        pytest.skip("the kernels' cache is their own")
    arena = served.device._attention.arena  # type: ignore[attr-defined]
    assert arena.bytes == ROWS * MAX_LEN * column_bytes(served.config.to_dict(), 4)
