"""What is measured: prompts as token ids, so that everybody does the same work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from langchain_accel.errors import InvalidRequest

Tokens = list[int]
Answer = Callable[[Sequence[Tokens], int], list[Tokens]]
"""`answer(prompts, new)`: so many greedy tokens for each prompt, all prompts at once."""

_FIRST_ORDINARY = 10  # special tokens have small ids in most vocabularies


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts that are answered together, and what is said after each answer.

    Attributes:
        name: what it is called.
        prompts: token ids of each prompt.
        new: tokens of each answer.
        later: what is appended to prompt and answer, and answered again, one after the other.
    """

    name: str
    prompts: tuple[Tokens, ...]
    new: int
    later: tuple[Tokens, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return len(self.prompts) * self.new * (1 + len(self.later))

    @property
    def longest(self) -> int:
        """Columns that the longest prompt and answer take."""
        said = sum(len(tokens) + self.new for tokens in self.later)
        return max(map(len, self.prompts)) + self.new + said

    def run(self, answer: Answer) -> list[Tokens]:
        """Have it answered; return the last answers.

        Raises:
            InvalidRequest: an answer is shorter or longer than was asked: the work is not the same.
        """
        prompts = list(self.prompts)
        answers = self._checked(answer(prompts, self.new))
        for said in self.later:
            prompts = [[*prompt, *done, *said] for prompt, done in zip(prompts, answers, strict=True)]
            answers = self._checked(answer(prompts, self.new))
        return answers

    def _checked(self, answers: list[Tokens]) -> list[Tokens]:
        lengths = [len(answer) for answer in answers]
        if lengths != [self.new] * len(self.prompts):
            msg = (
                f"{self.name}: answers of {lengths} tokens came where {len(self.prompts)} of {self.new} were asked for"
            )
            raise InvalidRequest(msg)
        return answers


def workloads(vocab_size: int, repeat: int = 0) -> list[Workload]:
    """Return the workloads of `langchain-accel bench`: random tokens, the same at every call.

    `latency` is the method of https://huggingface.co/blog/habana-gaudi-2-bloom: a prompt of 7 tokens, 100 new ones,
    greedy, one at a time. `throughput` answers 8 unequal prompts at once, `rag` 8 questions over one context, and
    `session` is a conversation of four turns, whose prompts begin with the ones before.

    Args:
        vocab_size: of the model.
        repeat: changes the first token of every prompt, so that nothing is remembered from another repeat.
    """
    draw = np.random.default_rng(0)

    def tokens(count: int) -> Tokens:
        return [int(token) for token in draw.integers(min(_FIRST_ORDINARY, vocab_size - 1), vocab_size, count)]

    def prompt(*parts: Tokens) -> Tokens:
        whole = [token for part in parts for token in part]
        return [(whole[0] + repeat) % vocab_size, *whole[1:]]

    context = tokens(512)
    return [
        Workload("latency", (prompt(tokens(7)),), new=100),
        Workload("throughput", tuple(prompt(tokens(int(length))) for length in draw.integers(64, 192, 8)), new=64),
        Workload("rag", tuple(prompt(context, tokens(16)) for _ in range(8)), new=32),
        Workload("session", (prompt(tokens(128)),), new=32, later=(tokens(32), tokens(32), tokens(32))),
    ]
