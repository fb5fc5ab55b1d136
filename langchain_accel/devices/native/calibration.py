"""What matters in a model, seen on a short text before its weights are rounded.

A weight's error counts by the mean square of what it is multiplied with (as in AWQ, Lin et al. 2023, arXiv:2306.00978),
a product's by how the model's choice of tokens hangs on its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from langchain_accel.devices.base import IntArray, Logits
from langchain_accel.devices.torch_rows.positions import position_limit

_FLOOR = 0.05  # of the mean: what a short text does not show is not nothing
_MOST_TOKENS = 512
FEW_TOKENS = 128
"""As many of the text as show the magnitudes of inputs; also those whose every layer is kept for the way back."""

Products = Iterable[tuple[str, list[Any]]]
"""Names of products, and the layers that make each, one below the other."""

FACT = "The warranty covers the motor and the housing for 24 months from delivery; seals and filters are wear parts."
ASKED = "What does the warranty of the pump cover, and for how long?"
TEXT = """\
In 1911 the first lamps of the harbour were lit by gas. Twelve years later, electricity had replaced it almost \
everywhere, and the old keepers, who had walked the quay each evening, were given work in the new power station.

def mean(values: list[float]) -> float:
    # The arithmetic mean.
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)

{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3, "unit": "celsius"}}

Dear Ms Okafor, thank you for your letter of 14 March. We are sorry that the parcel arrived late. Please find enclosed \
a refund of EUR 18.50; the rest of your order will follow next week. Kind regards, the service team.

1. Boil the water. 2. Add 200 g of rice and a pinch of salt. 3. Cover, turn the heat down, and wait for 12 minutes.

La biblioteca abre de lunes a viernes de 9:00 a 18:30. Die Anmeldung ist kostenlos. Les livres sont pretes pour trois \
semaines. Why does ice float? Because water expands when it freezes, so that ice is less dense than the water around.
"""
"""Prose, questions, code, JSON, lists and other languages, in few words."""


def tokens_of(folder: Path, vocabulary: int) -> IntArray:
    """Return the text as `[n]` token ids of a folder's tokenizer; random ones where it has none that loads.

    A model that chats sees it in its own chat template, a question and its answer first.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        text = f"{FACT}\n\n{ASKED}\n\n{FACT}\n\n{TEXT}"
        if tokenizer.chat_template:
            turns = (("user", f"{FACT}\n\n{ASKED}"), ("assistant", FACT), ("user", TEXT))
            text = tokenizer.apply_chat_template(
                [{"role": role, "content": said} for role, said in turns], tokenize=False
            )
        found = tokenizer(text, add_special_tokens=not tokenizer.chat_template, verbose=False)["input_ids"]
    except Exception:  # noqa: BLE001  whatever is wrong with it, the runtime will say; importance is no reason to fail
        found = []
    known = [token for token in found if token < vocabulary]  # which may lack added ones
    return np.array(known[:_MOST_TOKENS] or np.random.default_rng(0).integers(0, vocabulary, _MOST_TOKENS))


@dataclass(frozen=True)
class Inputs:
    """What a text showed of the inputs of a product.

    Attributes:
        squares: mean square of each, `[inputs]` float32: how much errors of its weights count.
        largest: largest magnitude of each, `[inputs]` float32.
    """

    squares: Logits
    largest: Logits


def inputs(model: Any, products: Products, tokens: IntArray) -> dict[str, Inputs]:
    """Return what the inputs of each product are like, by the product's name.

    Args:
        model: as transformers loaded it.
        products: of the model.
        tokens: `[n]` ids to see it on.
    """
    found: dict[str, Inputs] = {}

    def see(name: str, _module: Any, arguments: tuple[torch.Tensor]) -> None:
        numbers = arguments[0].float().flatten(0, -2)
        squares = numbers.pow(2).mean(0)
        mean = squares.mean()
        if 0 < mean < torch.inf:  # or this text shows nothing, and all inputs count alike
            found[name] = Inputs((squares + _FLOOR * mean).numpy(), numbers.abs().amax(0).numpy())

    hooks = [layers[0].register_forward_pre_hook(partial(see, name)) for name, layers in products]
    try:
        with torch.inference_mode():
            model(torch.from_numpy(tokens)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@dataclass(frozen=True)
class Effect:
    """What a product made of some tokens, and how the model's choice of the next ones hangs on it.

    Attributes:
        inputs: `[n, inputs]` float32.
        outputs: `[n, outputs]` float32.
        gradients: `[n, outputs]` float32, of the log-probability of tokens drawn from the model.
    """

    inputs: Logits
    outputs: Logits
    gradients: Logits

    def harm(self, rounded: Callable[[Logits], Logits]) -> float:
        """Estimate what the model loses if a rounded product stands for this one, in tokens; 0 to n.

        The change of a token's log-probability, to first order, squared: what it adds to the divergence from the exact
        model, up to a factor, since the expected square of these gradients is its curvature (Amari 1998, "Natural
        Gradient Works Efficiently in Learning"). A token cannot be worse than lost: none counts more than 1, and
        one whose gradients are no numbers counts as that.
        """
        off = rounded(self.inputs) - self.outputs
        with np.errstate(invalid="ignore", over="ignore"):  # gradients of random weights grow without bound
            lost = np.square((self.gradients * off).sum(-1))
        return float(np.fmin(lost, 1).sum())


@dataclass(frozen=True)
class Seen:
    """What a text showed of a model's products, by their names; empty for nothing.

    Attributes:
        inputs: as `inputs` finds them.
        effects: as `effects` finds them.
    """

    inputs: Mapping[str, Inputs]
    effects: Mapping[str, Effect]


def effects(model: Any, products: Products, tokens: IntArray) -> dict[str, Effect]:
    """Return what each product does to the first tokens of a text, by its name; of those that do it just once.

    Args:
        model: as transformers loaded it; its weights ask for no gradients any more.
        products: of the model.
        tokens: `[n]` ids to see it on.
    """
    products = list(products)
    model.requires_grad_(False)
    seen: dict[str, tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def see(name: str, _module: Any, arguments: tuple[torch.Tensor], output: torch.Tensor) -> None:
        output.retain_grad()
        seen.setdefault(name, (arguments[0].detach(), []))[1].append(output)

    def trace(_module: Any, _arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_()

    hooks = [layer.register_forward_hook(partial(see, name)) for name, layers in products for layer in layers]
    hooks.append(model.get_input_embeddings().register_forward_hook(trace))
    try:
        traced = torch.from_numpy(tokens[:FEW_TOKENS])[None]
        logits = model(traced, use_cache=False).logits[0].float()
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
        (-cross_entropy(logits, drawn, reduction="sum")).backward()
    finally:
        for hook in hooks:
            hook.remove()

    def whole(parts: list[torch.Tensor]) -> Logits:
        joined: Logits = torch.cat([part.float().flatten(0, -2) for part in parts], dim=-1).numpy()
        return joined

    found: dict[str, Effect] = {}
    for name, layers in products:
        inputs, outputs = seen.get(name, (torch.empty(0), []))
        gradients = [output.grad for output in outputs if output.grad is not None]
        if len(gradients) == len(layers) == len(outputs):
            found[name] = Effect(whole([inputs]), whole([output.detach() for output in outputs]), whole(gradients))
    return found


def look(model: Any, products: Products, tokens: IntArray, weights: str) -> Seen:
    """Return what a text shows of a model that is to be rounded.

    Args:
        model: as transformers loaded it; for 4 bits, its weights ask for no gradients any more.
        products: of the model.
        tokens: `[n]` ids of the text; as many are read as it has positions for, and for 8 bits a few say enough.
        weights: `"int8"` or `"int4"`.
    """
    products, tokens = list(products), tokens[: position_limit(model.config)[0]]
    if weights == "int8":
        return Seen(inputs(model, products, tokens[:FEW_TOKENS]), {})
    return Seen(inputs(model, products, tokens), effects(model, products, tokens))
