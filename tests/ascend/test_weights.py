"""A checkpoint that does not fit its model is refused; MindSpore is not needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from langchain_accel.devices.ascend.weights import check_names
from langchain_accel.errors import ModelRejected

FOLDER = Path("folder")
PARAMETERS = {"embedding", "qkv", "output_layer.weight"}
TAKEN = {"embed": "embedding", "q": "qkv", "k": "qkv", "output_layer.weight": "output_layer.weight"}


def test_weights_that_fit_are_taken() -> None:
    """Several may make one parameter; tables of rotary embeddings are computed, not read."""
    check_names(FOLDER, PARAMETERS, TAKEN | {"rotary.inv_freq": "rotary.inv_freq"}, tied=False)


def test_a_weight_that_is_missing_is_named() -> None:
    """Mutant seen to fail: nobody looks."""
    with pytest.raises(ModelRejected, match=r"folder lacks weights that its config\.json asks for: embedding; fetch"):
        check_names(FOLDER, PARAMETERS, {name: to for name, to in TAKEN.items() if name != "embed"}, tied=False)


def test_a_weight_without_a_place_is_named() -> None:
    """Such as biases, which mindformers' Qwen2 leaves out in silence. Mutant seen to fail: only missing ones named."""
    with pytest.raises(ModelRejected, match=r"no place for: q\.bias; it is not served"):
        check_names(FOLDER, PARAMETERS, TAKEN | {"q.bias": "qkv.bias"}, tied=False)


@pytest.mark.parametrize("parameters", [PARAMETERS, PARAMETERS - {"output_layer.weight"}])
@pytest.mark.parametrize("stored", [True, False])
def test_a_tied_head_may_be_there_or_not(parameters: set[str], stored: bool) -> None:
    """In the model and in the checkpoint. Mutant seen to fail: ties are not heeded."""
    taken = {name: to for name, to in TAKEN.items() if stored or name != "output_layer.weight"}
    check_names(FOLDER, parameters, taken, tied=True)
