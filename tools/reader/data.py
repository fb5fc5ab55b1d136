"""What training reads: a mixture of conversations, short ones first, in batches of like length."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tools.reader.reading import Conversation, Reading, Size
from tools.reader.tokens import encode
from tools.reader.toolcalls import ToolCalls

BATCH_TOKENS = 3072
IGNORED = -100
_POOL = 48


class Mixture:
    """Conversations of all kinds.

    Args:
        rng: source of chance.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.reading = Reading(rng)
        self.tools = ToolCalls(rng)

    def conversation(self, progress: float) -> Conversation:
        """One conversation, as hard as it should be at a point of training, 0 to 1."""
        kind = self.rng.random()
        if kind < 0.56:
            return self.reading.conversation(self._size(progress))
        if kind < 0.84:
            most = 1 if progress < 0.15 else 2 if progress < 0.4 else 3
            return self.tools.conversation(tools=most, arguments=min(most, 2) if progress < 0.3 else 3)
        return self.tools.extraction()

    def _size(self, progress: float) -> Size:
        if progress < 0.08:
            return Size((1, 1), (2, 4), (1, 4))
        if progress < 0.3:
            return Size((1, 2), (2, 5), (1, 4))
        if progress < 0.6:
            return Size((1, 4), (2, 6), (1, 5))
        return Size((1, 4), (2, 6), (1, 5)) if self.rng.random() < 0.6 else Size((3, 6), (3, 8), (1, 5))


class Batches:
    """Endless batches; what comes next follows from the seed and the progress it was asked at.

    Args:
        tokenizer: the reader's.
        rng: source of chance.
        longest: conversations longer than this many tokens are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random, longest: int) -> None:
        self.tokenizer, self.rng, self.longest = tokenizer, rng, longest
        self.mixture = Mixture(rng)
        self._ready: list[list[tuple[list[int], list[bool]]]] = []

    def next(self, progress: float) -> tuple[Tensor, Tensor]:
        """Token ids and labels, both `[B, T]`; labels are `IGNORED` where there is nothing to learn."""
        if not self._ready:
            self._ready = list(self._sorted(progress))
            self.rng.shuffle(self._ready)
        batch = self._ready.pop()
        width = max(len(ids) for ids, _ in batch)
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        labels = torch.full((len(batch), width), IGNORED)
        for row, (ids, learnt) in enumerate(batch):
            tokens[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.where(torch.tensor(learnt), torch.tensor(ids), IGNORED)
        return tokens, labels

    def _sorted(self, progress: float) -> Iterator[list[tuple[list[int], list[bool]]]]:
        pool: list[tuple[list[int], list[bool]]] = []
        while len(pool) < _POOL:
            pair = encode(self.tokenizer, self.mixture.conversation(progress))
            if len(pair[0]) <= self.longest:
                pool.append(pair)
        pool.sort(key=lambda pair: len(pair[0]))
        batch: list[tuple[list[int], list[bool]]] = []
        for pair in pool:
            if batch and len(pair[0]) * (len(batch) + 1) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(pair)
        yield batch
