"""Start weights that read before the first training step.

Training a small model from noise, attention learns to copy late and suddenly (Olsson et al. 2022, "In-context Learning
and Induction Heads", https://arxiv.org/abs/2209.11895). The circuits are known, so they are written down here, and
training refines them, in the spirit of mimetic initialisation (Trockman and Kolter 2023,
https://arxiv.org/abs/2305.09828):

- layer 0: the token before, the one before that, the words around; where a sentence opens, where an answer begins,
  where the value of a JSON key stands; the key that a type of a schema belongs to;
- layer 1: which sentence this is: some of the words before its opening, a signature that hardly any two sentences
  share; whether this stands in an answer, or in a request; the last few words that matter;
- layer 2: where else this word stands. A word of the question that stands in one sentence votes for it alone, one that
  stands in many is shared among them, one that stands nowhere votes for nothing; where the name of a tool begins;
- layer 3: the votes of the last couple of dozen tokens: before an answer those of the question, then more and more
  those of the answer itself, all for the sentence it is copied from; the value of a JSON key, which is the name or
  number of the request with the same words near it; what opens it, which hangs on the key's type;
- layer 4: where an answer begins, the first word of the sentence with most votes, or "I" if none has enough; then what
  followed the two latest tokens, in that sentence rather than in another, and rather than in an answer, which would be
  copied without end; the name of the tool whose words have most votes.

The residual stream is divided into named parts; every other weight is small noise. How sharp matches of reading are was
found by search: each was raised and lowered for as long as answers to training text got likelier; the others by hand.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from tools.reader.circuits import HEAD, HIDDEN, Heads, blocks, flag, part
from tools.reader.directions import embedding_of, topics_of, words_of

_NORMS = (3.5, 4.01, 4.27, 4.35, 4.44)
"""Of what comes into each layer, as measured. All embeddings have the first: heads that attend by distance must not
prefer light tokens."""
_WRITTEN_HEADS = (4, 3, 3, 3, 2)
"""Of each layer, its first ones; training finds a use for the others."""
_NEURONS = 6
"""Written ones, of layer 0."""
_LOUD, _SURE = 4.0, 4.0
"""How much louder a copied word is than the word that is there; how much a matching direction weighs in the output."""


def initialise(model: LlamaForCausalLM, tokens: list[str], counts: Counter[int], seed: int) -> None:
    """Write the start weights.

    Args:
        model: its shape must be that of `circuits`.
        tokens: the text of every token of the vocabulary.
        counts: how often each token occurs in training text.
        seed: of the random directions.
    """
    random = torch.Generator().manual_seed(seed)
    words = words_of(tokens, random)
    embedding = embedding_of(tokens, words, topics_of(tokens, counts, random), _NORMS[0])
    layers = model.model.layers
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.copy_(0.02 * torch.randn(weight.shape, generator=random))
                if "down_proj" in name or "o_proj" in name:
                    weight.mul_(0.5)
                    weight[: part("free").start] *= 0.1
                else:
                    weight[:, [flag("constant").start, flag("level").start]] = 0
        model.model.embed_tokens.weight.copy_(embedding)
        heads = [Heads(layer.self_attn, math.sqrt(HIDDEN) / norm) for layer, norm in zip(layers, _NORMS, strict=True)]
        _look_around(heads[0])
        _name_types(heads[0])
        _mark(layers[0].mlp, math.sqrt(HIDDEN) / _NORMS[1])
        _find_sentence(heads[1])
        _find_turn(heads[1])
        _look_near(heads[1])
        _vote(heads[2])
        _find_names(heads[2])
        _gather(heads[3])
        _find_value(heads[3])
        _find_type(heads[3], dict(zip(tokens, words, strict=True)))
        _choose(heads[4], words[tokens.index("I")])
        _copy(heads[4])
        head = torch.zeros_like(embedding)
        head[:, part("word")] = _SURE * words
        after_dot = {" ": -8.0, "\n": -8.0, "<|im_end|>": 5.0}  # a sentence ends where another would begin
        for text, weight in after_dot.items():
            head[tokens.index(text), flag("dot")] = weight * _SURE
        spaced = torch.tensor([len(text) > 1 and text.startswith(" ") for text in tokens])
        head[spaced, flag("value")] = -2.0 * _SURE  # a value is copied without the space before it
        model.lm_head.weight.copy_(head + 0.002 * torch.randn(head.shape, generator=random))


def paces(model: LlamaForCausalLM) -> list[tuple[Tensor, Tensor]]:
    """Every weight, with 1 where training is free to change it and 0 where a circuit was written or reads.

    What training finds in the first layers goes to the free part of the residual stream, so that it does not talk over
    the circuits.
    """
    free = part("free")
    found: list[tuple[Tensor, Tensor]] = []

    def add(weight: Tensor, value: float, *changed: tuple[object, float]) -> None:
        mask = torch.full_like(weight, value)
        for places, other in changed:
            mask[places] = other
        found.append((weight, mask))

    every = slice(None)
    add(model.model.embed_tokens.weight, 0, ((every, free), 1))
    add(model.lm_head.weight, 0, ((every, free), 1), ((every, part("flag")), 1))
    layers = model.model.layers
    for index, layer in enumerate(layers):
        heads, neurons = slice(0, _WRITTEN_HEADS[index] * HEAD), slice(0, 0 if index else _NEURONS)
        target = every if index == len(layers) - 1 else free
        attention, mlp = layer.self_attn, layer.mlp
        for weight in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
            add(weight, 1, (heads, 0))
        add(attention.o_proj.weight, 0, (target, 1), ((every, heads), 0))
        for weight in (mlp.gate_proj.weight, mlp.up_proj.weight):
            add(weight, 1, (neurons, 0))
        add(mlp.down_proj.weight, 0, (target, 1), ((every, neurons), 0))
    for weight in model.parameters():
        if weight.dim() == 1:
            add(weight, 0)
    return found


def _look_around(heads: Heads) -> None:
    """Layer 0: the last token, the one before it, the words around."""
    behind = {0: 30.0, 1: 20.0, 2: 20.0, 4: 15.0, 6: 15.0}
    heads.look(0, behind, back=1)
    heads.carry(0, blocks("word", 0, 1), part("last"), math.sqrt(2))
    heads.carry(0, flag("gap"), flag("last_gap"))
    heads.carry(0, flag("role"), flag("last_role"))
    heads.carry(0, flag("sink"), flag("turn"))
    heads.carry(0, flag("colon"), flag("last_colon"))
    heads.look(1, behind, back=2)
    heads.carry(1, blocks("word", 0), part("before_last"), 2.0)
    heads.carry(1, flag("ends"), flag("before_ends"))
    heads.carry(1, flag("naming"), flag("last_colon"))
    heads.look(2, {1: 2.0, 2: 3.0, 3: 4.0, 4: 6.0, 5: 8.0, 7: 10.0, 9: 10.0}, back=5)
    heads.match(2, flag("constant"), flag("rare"), 3.0)
    heads.carry(2, blocks("word", 2, 3), part("around"), 3.0)


def _name_types(heads: Heads) -> None:
    """Layer 0: the key that a type of a schema belongs to, six tokens before: `"key": {"type": "string"`."""
    heads.look(3, {0: 30.0, 1: 20.0, 2: 20.0, 4: 15.0, 6: 15.0}, back=6)
    heads.match(3, flag("constant"), flag("sink"), 150.0)
    heads.match(3, flag("typed"), flag("sink"), -150.0)
    heads.carry(3, blocks("word", 0), part("before_last"), 4.0)


def _mark(mlp: torch.nn.Module, scale: float) -> None:
    """Layer 0: whether a sentence opens here, and whether an answer begins."""

    def neuron(row: int, conditions: dict[str, float], least: float, says: str, much: float = 1.0) -> None:
        sharp = 12.0
        for weight in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T):
            weight[row] = 0
        for name, times in conditions.items():
            mlp.gate_proj.weight[row, flag(name)] = sharp * times / scale
        mlp.gate_proj.weight[row, flag("constant")] = -sharp * least / scale
        mlp.up_proj.weight[row, flag("constant")] = 2 * much / sharp / scale
        mlp.down_proj.weight[flag(says), row] = 1.0

    opening = {"start": 2.0, "last_gap": 1.0, "before_ends": 1.0}  # 4 of ". The" and of a line's first word, or 5
    neuron(0, opening, 3.5, "opens")
    neuron(2, opening, 4.0, "opens", -1.0)
    neuron(1, {"line": 1.0, "last_role": 1.0}, 1.5, "begins")
    text = {"last_colon": 1.5, "quote": 0.5, "gap": 0.5}  # 2 of `": "`, 3.5 of `name": "`
    neuron(3, text, 1.5, "value")
    # Takes away what there is at 3.5, or a little more, since what is left would look for a value; not steeply, since
    # how large 3.5 is differs with the vocabulary.
    neuron(4, text, 2.25, "value", -1.65)
    neuron(5, text, 3.0, "names")


def _find_sentence(heads: Heads) -> None:
    """Layer 1: the signature of this sentence."""
    heads.look(0, {6: 20.0, 7: 35.0, 8: 30.0, 9: 20.0, 10: 20.0}, back=-20, among="opens")
    heads.carry(0, part("around"), part("sentence"))


def _find_turn(heads: Heads) -> None:
    """Layer 1: whether this stands in an answer or in a request, by the last word after `<|im_start|>` not far back."""
    heads.look(1, {6: 20.0, 7: 35.0, 8: 30.0, 9: 20.0, 10: 20.0}, back=-20, among="turn")
    heads.match(1, flag("constant"), flag("sink"), 35.0)
    heads.carry(1, flag("role"), flag("mine"))
    heads.carry(1, flag("user"), flag("asked"))


def _look_near(heads: Heads) -> None:
    """Layer 1: the last few words that matter, by their letters, where nobody reads the words around any more."""
    heads.look(2, {2: 8.0, 3: 8.0, 4: 8.0}, back=2.5)
    heads.match(2, flag("constant"), flag("rare"), 3.0)
    heads.carry(2, blocks("topic", 0), blocks("around", 0), 2.0)


def _vote(heads: Heads) -> None:
    """Layer 2: the sentences that hold this word, and those that hold this word after the same one."""
    for head in (0, 1):
        heads.look(head, dict.fromkeys((4, 5, 6, 7), -0.5))
        heads.carry(head, part("sentence"), part("vote"))
    heads.match(0, part("topic"), part("topic"), 39.0)
    heads.match(0, flag("constant"), flag("sink"), 19.6)
    heads.match(1, blocks("word", 0, 1), blocks("word", 0, 1), 19.6)
    heads.match(1, part("last"), part("last"), 9.8)
    heads.match(1, flag("constant"), flag("sink"), 21.0)


def _find_names(heads: Heads) -> None:
    """Layer 2: where the name of a tool begins, the word after `"name": "`."""
    heads.look(2, {0: 30.0, 1: 20.0, 2: 20.0, 4: 15.0, 6: 15.0}, back=1)
    heads.carry(2, flag("names"), flag("named"))


def _gather(heads: Heads) -> None:
    """Layer 3: the votes of rare words, not far back, less what they say for their own sentences."""
    heads.look(0, dict.fromkeys((6, 8, 10), 2.8))
    heads.match(0, part("sentence"), part("sentence"), 0.08)
    heads.match(0, flag("constant"), flag("rare"), 11.52)
    heads.carry(0, part("vote"), part("target"))
    heads.carry(0, part("sentence"), part("target"), -0.35)


def _find_value(heads: Heads) -> None:
    """Layer 3: the value of a JSON key: the name or number of the request near the key's words."""
    heads.match(1, blocks("around", 0), blocks("around", 0), 40.0)
    heads.match(1, flag("value"), flag("start"), 40.0)
    heads.match(1, flag("value"), flag("last_gap"), 25.0)
    heads.match(1, flag("value"), flag("asked"), 90.0)
    heads.match(1, flag("value"), flag("opens"), -90.0)
    heads.match(1, flag("value"), flag("sink"), -220.0)
    heads.match(1, flag("constant"), flag("sink"), 200.0)
    heads.carry(1, part("word"), part("word"), _LOUD)


def _find_type(heads: Heads, said: dict[str, Tensor]) -> None:
    """Layer 3: after a key and its colon, a quote, a space or a truth, by the type that the schema gives the key."""
    heads.match(2, blocks("last", 0), part("before_last"), 20.0)
    heads.match(2, flag("colon"), flag("typed"), 60.0)
    heads.match(2, flag("constant"), flag("sink"), 90.0)
    heads.match(2, flag("colon"), flag("sink"), -35.0)
    number, text = said[" "], said[' "']
    truth = sum((0.5 * said[word] for word in (" true", " false") if word in said), torch.zeros_like(number))
    heads.say(2, flag("typed"), part("word"), _LOUD * number)
    heads.say(2, flag("text"), part("word"), _LOUD * (text - number))
    heads.say(2, flag("truth"), part("word"), _LOUD * (truth - number))


def _choose(heads: Heads, unknown: Tensor) -> None:
    """Layer 4: where an answer begins, the opening of the sentence with most votes, or else `unknown`."""
    heads.match(0, part("target"), part("sentence"), 41.16)
    heads.match(0, flag("begins"), flag("opens"), 40.0)
    heads.look(0, dict.fromkeys((3, 4, 5), -4.2), back=4)
    heads.match(0, flag("begins"), flag("role"), 52.0)
    heads.match(0, flag("begins"), flag("sink"), -40.0)
    heads.match(0, flag("constant"), flag("sink"), 40.0)
    heads.carry(0, part("word"), part("word"), _LOUD)
    heads.say(0, flag("role"), part("word"), _LOUD * unknown)


def _copy(heads: Heads) -> None:
    """Layer 4: what followed the two latest tokens, in the sentence with most votes; and what did anywhere."""
    heads.match(1, blocks("word", 0), blocks("last", 0), 25.2 * 2 * math.sqrt(2))
    heads.match(1, blocks("last", 0), part("before_last"), 9.1 * math.sqrt(2))
    heads.match(1, part("target"), part("sentence"), 20.0)
    heads.match(1, flag("names"), flag("named"), 60.0)
    heads.match(1, flag("begins"), flag("sink"), 60.0)
    heads.match(1, flag("value"), flag("sink"), 400.0)
    heads.match(1, flag("colon"), flag("sink"), 200.0)
    heads.match(1, flag("constant"), flag("mine"), -30.0)
    heads.carry(1, part("word"), part("word"), _LOUD)
    heads.match(2, blocks("word", 0, 1), part("last"), 25.2 * math.sqrt(2))
    heads.match(2, blocks("last", 0), part("before_last"), 9.1 * math.sqrt(2))
    heads.match(2, flag("begins"), flag("sink"), 60.0)
    heads.match(2, flag("value"), flag("sink"), 400.0)
    heads.match(2, flag("colon"), flag("sink"), 200.0)
    heads.match(2, flag("constant"), flag("mine"), -30.0)
    heads.carry(2, part("word"), part("word"))
