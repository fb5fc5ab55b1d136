"""What training reads: groups of conversations that share their beginning, short ones first, packed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tools.reader.attention import Layout
from tools.reader.pieces import Pieces
from tools.reader.reading import Conversation, Reading, Size
from tools.reader.tokens import Encoded, encode
from tools.reader.toolcalls import ToolCalls

BATCH_TOKENS = 1024
IGNORED = -100
_SPLIT = (0.0, 0.5, 1.0)
"""Of the words that the vocabulary holds whole, the shares that are written in pieces; one is drawn for each group."""


LATE, UNANSWERABLE = 0.93, 0.16
"""Share of the training after which twice as many questions have no answer; how many have none before."""


class Mixture:
    """Groups of conversations of all kinds; those of a group are about the same text or the same tools.

    Args:
        rng: source of chance.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.reading = Reading(rng)
        self.tools = ToolCalls(rng)

    def group(self, progress: float) -> list[Conversation]:
        """One group, as hard as it should be at a point of training, 0 to 1."""
        kind = self.rng.random()
        if kind < 0.65:
            unanswerable = UNANSWERABLE if progress < LATE else 2 * UNANSWERABLE
            return self.reading.conversations(self._size(progress), 8, unanswerable=unanswerable)
        if kind < 0.9:
            most = 1 if progress < 0.05 else 2 if progress < 0.15 else 3
            return self.tools.conversations(6, tools=most, arguments=min(most, 2) if progress < 0.15 else 3)
        return [self.tools.extraction() for _ in range(4)]

    def _size(self, progress: float) -> Size:
        shape = self.rng.random()
        if progress < 0.05 or shape < 0.4:
            return Size((1, 1), (2, 6), (1, 2))
        if progress < 0.15 or shape < 0.8:
            return Size((2, 3), (2, 6), (1, 2))
        return Size((3, 6), (3, 7), (1, 3))


@dataclass(frozen=True)
class Batch:
    """Groups one after the other, as one sequence without padding.

    Attributes:
        tokens: `[1, T]`.
        labels: `[1, T]`, `IGNORED` where there is nothing to learn.
        positions: `[1, T]`: the place of each token in its own conversation.
        groups: where each group lies.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    groups: list[Layout]

    def to(self, device: str) -> Batch:
        """The same on a device."""
        return Batch(self.tokens.to(device), self.labels.to(device), self.positions.to(device), self.groups)


def pack(groups: list[list[Encoded]]) -> Batch:
    """Pack groups of encoded conversations; what all conversations of a group begin with stands there once."""
    tokens: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    layouts: list[Layout] = []
    for group in groups:
        unlearnt = min(learnt.index(True) for _, learnt in group)
        prefix = min(_agreeing([ids for ids, _ in group]), unlearnt - 1)
        tokens += group[0][0][:prefix]
        labels += [IGNORED] * prefix
        positions += range(prefix)
        for ids, learnt in group:
            tokens += ids[prefix:]
            labels += [token if learn else IGNORED for token, learn in zip(ids, learnt, strict=True)][prefix:]
            positions += range(prefix, len(ids))
        layouts.append(Layout(prefix, tuple(len(ids) - prefix for ids, _ in group)))
    return Batch(torch.tensor([tokens]), torch.tensor([labels]), torch.tensor([positions]), layouts)


def _agreeing(sequences: list[list[int]]) -> int:
    """How many tokens all sequences begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))


class Batches:
    """Endless batches; what comes next follows from the seed and the progress it was asked at.

    Args:
        tokenizer: the reader's.
        rng: source of chance.
        longest: groups with a conversation of more tokens are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random, longest: int) -> None:
        self.tokenizer, self.longest = tokenizer, longest
        self.mixture = Mixture(rng)
        self.pieces = Pieces(tokenizer)

    def next(self, progress: float) -> Batch:
        """The next batch, of `BATCH_TOKENS` tokens and at most one group more."""
        groups: list[list[Encoded]] = []
        size = 0
        while size < BATCH_TOKENS:
            share, seed = self.mixture.rng.choice(_SPLIT), self.mixture.rng.getrandbits(32)
            group = [
                self.pieces.split(encode(self.tokenizer, conversation), share, seed)
                for conversation in self.mixture.group(progress)
            ]
            if max(len(ids) for ids, _ in group) <= self.longest:
                groups.append(group)
                size = sum(map(len, (packed := pack(groups)).groups))
        return packed
