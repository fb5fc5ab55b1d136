"""Words in pieces, as the words are that training never shows."""

from __future__ import annotations

import json
import random

from transformers import PreTrainedTokenizerFast

from tools.reader.tokens import Encoded
from tools.reader.words import CONTENT

_FIXED = frozenset({"assistant", "function", "name", "number", "object", "string", "system", "text", "type", "user"})
"""Words of the chat template and of schemas, which are the same in every text."""


class Pieces:
    """Writes some words in pieces that the vocabulary holds whole.

    The vocabulary is made of training text, so that a word of it is mostly one token, and one that training never
    showed is always several: training would not see what the evaluation is about.

    Args:
        tokenizer: the reader's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        vocabulary = tokenizer.get_vocab()
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        made = {"".join(pair): tuple(pair) for pair in merges}
        words = CONTENT - _FIXED
        self._halves: dict[int, tuple[int, int]] = {}
        for piece, halves in made.items():
            text = tokenizer.convert_tokens_to_string([piece])
            bare = made.get(piece[1:]) if text.startswith(" ") else None  # the space was merged last
            left, right = (piece[0] + bare[0], bare[1]) if bare else halves
            if text.strip().lower() in words and left in vocabulary:
                self._halves[vocabulary[piece]] = vocabulary[left], vocabulary[right]

    def split(self, encoded: Encoded, share: float, seed: int) -> Encoded:
        """Return a conversation with a share of its whole words in two pieces each, the same for the same seed."""
        ids: list[int] = []
        learnt: list[bool] = []
        for token, learn in zip(*encoded, strict=True):
            halves = self._halves.get(token)
            written = halves if halves and random.Random(seed ^ token).random() < share else (token,)
            ids += written
            learnt += [learn] * len(written)
        return ids, learnt
