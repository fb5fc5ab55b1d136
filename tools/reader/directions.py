"""What each token of the vocabulary says before the first step: its own direction, its letters, its flags."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tools.reader.circuits import BLOCK, HIDDEN, PARTS, flag, part

_FLAGS: dict[str, Callable[[str], float]] = {
    "sink": lambda text: text == "<|im_start|>",
    "turn": lambda text: -float(text == "<|im_start|>"),  # the very first one has itself before it
    "ends": lambda text: text.strip(" ").endswith((".", "?", "!", "\n", ":", "]", "-", "<|im_end|>")),
    "gap": lambda text: {" ": 1.0, "\n": 2.0}.get(text, 0.0),
    "start": lambda text: text[:1].isupper() or text[:1].isdigit() or text == '{"',
    "line": lambda text: text == "\n",
    "role": lambda text: text == "assistant",
    "user": lambda text: text == "user",
    "quote": lambda text: text == ' "',
    "colon": lambda text: text == '":',
    "naming": lambda text: text == "name",
    "dot": lambda text: text.endswith("."),
    "typed": lambda text: text in ("string", "integer", "number", "boolean"),
    "text": lambda text: text == "string",
    "truth": lambda text: text == "boolean",
}
"""What is known of a token by its text."""


def embedding_of(tokens: list[str], words: Tensor, topics: Tensor, norm: float) -> Tensor:
    """The vocabulary in the parts of the residual stream that tokens fill, `[V, HIDDEN]`, all of one norm."""
    embedding = torch.zeros(len(tokens), HIDDEN)
    embedding[:, part("word")], embedding[:, part("topic")] = words, topics
    embedding[:, flag("constant")] = 1
    for name, rule in _FLAGS.items():
        embedding[:, flag(name)] = torch.tensor([[float(rule(text))] for text in tokens])
    embedding[:, flag("rare")] = topics.norm(dim=-1, keepdim=True)
    roles = ("assistant", "user", "system")
    plain = [text in roles or not any(letter.isalnum() for letter in text) for text in tokens]
    embedding[torch.tensor(plain), flag("rare")] = 0
    # Heads with nothing to find attend to these two, which say nothing.
    embedding[[tokens.index("<|im_start|>"), tokens.index("assistant")], part("word")] = 0
    random = torch.Generator().manual_seed(1)
    embedding[:, part("free")] = 0.1 * torch.randn(len(tokens), PARTS["free"], generator=random)
    embedding[:, flag("level")] = (norm**2 - embedding.pow(2).sum(1, keepdim=True)).sqrt()
    return embedding


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def words_of(tokens: list[str], random: torch.Generator) -> Tensor:
    """A direction for each token; a word with and without its leading space share some of it.

    Every block of it has the same norm, so that matches by some of the blocks are as good for one token as for another.
    """
    shared: dict[str, Tensor] = {}
    for token in tokens:
        shared.setdefault(token.strip(" ") or token, torch.randn(PARTS["word"], generator=random))
    own = torch.randn(len(tokens), PARTS["word"], generator=random)
    mixed = 0.75 * torch.stack([shared[token.strip(" ") or token] for token in tokens]) + 0.66 * own
    count = PARTS["word"] // BLOCK
    return _unit(mixed.view(len(tokens), count, BLOCK)).flatten(1) / math.sqrt(count)


def topics_of(tokens: list[str], counts: Counter[int], random: torch.Generator) -> Tensor:
    """A direction for each token by its letters, longer the rarer it is.

    Tokens that share letter groups point alike (as in fastText, Bojanowski et al. 2017), so that "calibrate" finds
    "calibration"; words of every sentence hardly count.
    """
    seeds: dict[str, Tensor] = {}

    def direction(group: str) -> Tensor:
        if group not in seeds:
            seeds[group] = torch.randn(PARTS["topic"], generator=random)
        return seeds[group]

    total = sum(counts.values())
    topics = torch.zeros(len(tokens), PARTS["topic"])
    for index, token in enumerate(tokens):
        text = token.strip().lower()
        if not text or text.startswith("<"):
            continue
        padded = f"^{text}"
        groups = [padded[start : start + 4] for start in range(max(1, len(padded) - 3))]
        vector = 2 * direction(text) + torch.stack([direction(group) for group in groups]).sum(0) / math.sqrt(
            len(groups)
        )
        share = (counts[index] + 1) / total
        weight = float(np.clip((-math.log(share) - 5.0) / 2.5, 0.05, 1.0))
        topics[index] = weight * vector / vector.norm()
    return topics
