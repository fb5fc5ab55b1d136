"""Start weights in which copying works before the first training step.

Training a small model from noise, attention learns to copy late and suddenly (Olsson et al. 2022, "In-context Learning
and Induction Heads", https://arxiv.org/abs/2209.11895). The circuits are known, so they are written down here, and
training refines them, in the spirit of mimetic initialisation (Trockman and Kolter 2023,
https://arxiv.org/abs/2305.09828):

- layer 0: heads that look one and two tokens back, and heads that gather the words of the last few and of the last
  couple of dozen tokens;
- layer 1: a head that looks at the first token of its own sentence;
- layer 2: a head that finds the place whose gathered words are those of the question;
- layer 3: neurons that, where an answer begins, say the first token of the sentence that was found;
- layer 4: heads that find where the current token stood before, and copy what followed.

The residual stream is divided into named parts; every other weight is small noise.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from tools.reader.circuits import HEAD, HIDDEN, PARTS, Heads, kernel, part

_NORM, _LATER_NORM = 2.3, 3.3
"""Of an embedding, and of a hidden state after layer 0, as measured."""
_FIRST, _LATER = math.sqrt(HIDDEN) / _NORM, math.sqrt(HIDDEN) / _LATER_NORM
"""What the normalisation before a layer multiplies its input by."""
_CONSTANT, _ENDS, _OPENS, _LINE_END, _BARE, _CAPITAL, _LEVEL = (
    part("flag").start + place for place in (0, 1, 2, 3, 4, 5, 15)
)
"""Flags: always set; ends a sentence; begins one; is a line end; has no leading space; may begin a sentence;
makes all norms equal."""


def initialise(model: LlamaForCausalLM, tokens: list[str], counts: Counter[int], seed: int) -> None:
    """Write the start weights.

    Args:
        model: its shape must be that of `circuits`.
        tokens: the text of every token of the vocabulary.
        counts: how often each token occurs in training text.
        seed: of the random directions.
    """
    random = torch.Generator().manual_seed(seed)
    words = _words(tokens, random)
    embedding = _embedding(tokens, words, _topics(tokens, counts, random), random)
    layers = model.model.layers
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.copy_(0.02 * torch.randn(weight.shape, generator=random))
                if "down_proj" in name or "o_proj" in name:
                    weight.mul_(0.5)
        model.model.embed_tokens.weight.copy_(embedding)
        to_last, to_before, to_opening = (
            _unit(torch.randn(PARTS[name], PARTS["word"], generator=random)) * math.sqrt(PARTS["word"] / PARTS[name])
            for name in ("last", "before_last", "opening")
        )
        _look_around(Heads(layers[0].self_attn), to_last, to_before)
        _find_openings(Heads(layers[1].self_attn), to_opening)
        _find_topic(Heads(layers[2].self_attn), random)
        _say_opening(layers[3].mlp)
        _copy(Heads(layers[4].self_attn), to_last, to_before)
        head = torch.zeros_like(embedding)
        head[:, part("word")] = 2.0 * words
        head[:, part("target")] = 2.0 * words @ torch.linalg.pinv(to_opening)
        head[:, _BARE] = torch.tensor([float(not token.startswith(" ")) for token in tokens])
        model.lm_head.weight.copy_(head + 0.002 * torch.randn(head.shape, generator=random))


def _look_around(heads: Heads, to_last: Tensor, to_before: Tensor) -> None:
    """Layer 0: the last token, the one before it, the words around."""
    behind = {0: 30.0, 1: 20.0, 2: 20.0, 4: 15.0, 7: 15.0}
    heads.look(0, kernel(behind, back=1), _FIRST)
    heads.carry(0, part("word"), part("last"), to_last / _FIRST)
    heads.carry(0, slice(_ENDS, _ENDS + 1), slice(_OPENS, _OPENS + 1), torch.eye(1) / _FIRST, at=40)
    heads.look(1, kernel(behind, back=2), _FIRST)
    heads.carry(1, part("word"), part("before_last"), to_before / _FIRST)
    same = torch.eye(PARTS["topic"])
    heads.look(2, kernel({4: 13.0, 6: 10.0, 7: 30.0}), _FIRST)
    heads.carry(2, part("topic"), part("gathered"), 3.0 * same / _FIRST)
    heads.look(3, kernel({6: 25.0, 8: 20.0, 10: 20.0}), _FIRST)
    heads.carry(3, part("topic"), part("gathered"), 6.0 * same / _FIRST)


def _find_openings(heads: Heads, to_opening: Tensor) -> None:
    """Layer 1: how this sentence begins."""
    heads.look(0, kernel({4: 20.0, 6: 25.0, 8: 20.0}), _LATER, among=_OPENS)
    heads.key[:HEAD, _CAPITAL] = 0.5 * heads.key[:HEAD, _OPENS]
    heads.carry(0, part("word"), part("opening"), to_opening / _LATER)


def _find_topic(heads: Heads, random: torch.Generator) -> None:
    """Layer 2: the place, not too near, that speaks of the same."""
    project = torch.linalg.qr(torch.randn(PARTS["gathered"], 40, generator=random)).Q.T
    heads.match(0, part("gathered"), part("gathered"), project, 16.0, _LATER, keys=project)
    heads.look(0, dict.fromkeys((4, 5, 6), (4.0, math.pi)), _LATER)
    heads.carry(0, part("opening"), part("target"), torch.eye(PARTS["target"]) / _LATER)


def _say_opening(gate: torch.nn.Module) -> None:
    """Layer 3: where an answer begins, say the opening that was found."""
    size = PARTS["target"]
    for weight in (gate.gate_proj.weight, gate.up_proj.weight, gate.down_proj.weight.T):
        weight[: size + 1] = 0
    gate.gate_proj.weight[: size + 1, _LINE_END] = 12 / _LATER
    gate.gate_proj.weight[: size + 1, _CONSTANT] = -6 / _LATER
    gate.up_proj.weight[size, _CONSTANT] = 1 / _LATER
    gate.down_proj.weight[_BARE, size] = 1.0
    gate.up_proj.weight[:size, part("target")] = torch.eye(size) / _LATER
    gate.down_proj.weight[part("target"), :size] = 3.0 * torch.eye(size)


def _copy(heads: Heads, to_last: Tensor, to_before: Tensor) -> None:
    """Layer 4: what followed the last time, once by the current token, once by the two latest."""
    kept = torch.eye(PARTS["last"])
    heads.match(0, part("word"), part("last"), to_last, 25.0, _LATER, keys=kept)
    heads.match(1, part("word"), part("last"), to_last[:24], 25.0, _LATER, keys=kept[:24])
    older = to_before @ torch.linalg.pinv(to_last)
    same = torch.eye(PARTS["before_last"])
    heads.match(1, part("last"), part("before_last"), older, 12.0, _LATER, keys=same, skip=24)
    for head in (0, 1):
        heads.carry(head, part("word"), part("word"), 3.0 * torch.eye(PARTS["word"]) / _LATER)


def _embedding(tokens: list[str], words: Tensor, topics: Tensor, random: torch.Generator) -> Tensor:
    """The vocabulary in the parts of the residual stream that tokens fill, all of one norm.

    Heads that attend by distance must not prefer light tokens.
    """
    embedding = torch.zeros(len(tokens), HIDDEN)
    embedding[:, part("word")], embedding[:, part("topic")] = words, topics
    embedding[:, _CONSTANT] = 1.0
    embedding[:, _ENDS] = torch.tensor([float(_ends_sentence(token)) for token in tokens])
    embedding[:, _LINE_END] = torch.tensor([float(text == "\n") for text in tokens])
    embedding[:, _CAPITAL] = torch.tensor([float(_may_open(text)) for text in tokens])
    embedding[:, _CAPITAL + 1 : _LEVEL] = 0.1 * torch.randn(len(tokens), _LEVEL - _CAPITAL - 1, generator=random)
    embedding[:, _LEVEL] = (_NORM**2 - embedding.pow(2).sum(1)).sqrt()
    return embedding


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _words(tokens: list[str], random: torch.Generator) -> Tensor:
    """A direction for each token; a word with and without its leading space share some of it."""
    shared: dict[str, Tensor] = {}
    for token in tokens:
        shared.setdefault(token.strip(" "), torch.randn(PARTS["word"], generator=random))
    own = torch.randn(len(tokens), PARTS["word"], generator=random)
    return _unit(0.6 * torch.stack([shared[token.strip(" ")] for token in tokens]) + 0.8 * own)


def _ends_sentence(token: str) -> bool:
    return token.strip(" ").endswith((".", "?", "!", "\n", ":", "]", "<|im_end|>"))


def _may_open(token: str) -> bool:
    """Whether a sentence may begin with a token: a capital, or a number after a space."""
    first = token.strip(" ")[:1]
    return first.isupper() or (token.startswith(" ") and first.isdigit())


def _topics(tokens: list[str], counts: Counter[int], random: torch.Generator) -> Tensor:
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
        if not text:
            continue
        padded = f"^{text}"
        groups = [padded[start : start + 4] for start in range(max(1, len(padded) - 3))]
        vector = 2 * direction(text) + torch.stack([direction(group) for group in groups]).sum(0) / math.sqrt(
            len(groups)
        )
        share = (counts[index] + 1) / total
        weight = float(np.clip((-math.log(share) - 5.0) / 3.5, 0.05, 1.0))
        topics[index] = weight * vector / vector.norm()
    return topics
