"""Models of any architecture on the kernels' products and attention: torch's 8-bit tokens, alike in every step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("langchain_accel_kernels", reason="pip install ./kernels")
pytest.importorskip("torch")

import langchain_accel_kernels as kernels
import torch
from transformers import CONFIG_MAPPING

from langchain_accel.devices import xeon
from langchain_accel.devices.base import Device, Plan
from langchain_accel.devices.native import members
from langchain_accel.devices.processors import cpu_flags
from langchain_accel.devices.torch_rows import quantised
from langchain_accel.devices.torch_rows.adapters import alibi_slopes
from langchain_accel.devices.torch_rows.native_arena import NativeArena
from langchain_accel.devices.torch_rows.native_linear import NativeLinear
from langchain_accel.errors import ModelRejected
from tests.tiny_models import ARCHITECTURES, VOCABULARY, make, make_uneven

needs_vnni = pytest.mark.skipif(not quantised._INSTRUCTIONS.intersection(cpu_flags()), reason="no 8-bit instructions")
NAMES = (
    "bloom-6-heads", "cohere2", "falcon-alibi", "falcon-new", "falcon-old", "gemma2", "gemma3", "gpt2",
    "llama", "mpt", "opt", "phi", "stablelm", "starcoder2",
)  # fmt: skip
LONG = 100


def load(folder: Path, **options: Any) -> Device:
    plan = Plan("xeon", str(folder), rows=4, max_len=128, dtype="float32")
    return xeon.load(plan, xeon.Options(**{"weights": "int8", "prefill_chunk": 32, "threads": 1, **options}))


def prompt(size: int = LONG, seed: int = 1) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(5, VOCABULARY, size)


def verify(device: Device, row: int, start: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return device.verify(tokens[None], np.array([len(tokens)]), np.array([start]), np.array([row]))[0].copy()


@pytest.fixture(scope="module", params=[name for name in NAMES if ARCHITECTURES[name][0] in CONFIG_MAPPING])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Device]]:
    folder = make_uneven(request.param, tmp_path_factory.mktemp("model") / request.param)
    device = load(folder)
    assert isinstance(device._attention.arena, NativeArena)  # type: ignore[attr-defined]
    yield folder, device
    device.close()


@needs_vnni
def test_logits_are_those_of_torchs_8_bit_path(served: tuple[Path, Device]) -> None:
    """At every token of 100: past windows, and past a block of columns. Mutant seen to fail: no window."""
    folder, device = served
    other = load(folder, kernels=False)
    tokens = prompt()
    found, wanted = verify(device, 2, 0, tokens), verify(other, 2, 0, tokens)
    other.close()
    # A number that lies between two levels may be rounded either way: few logits differ, and these not by much.
    far = np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted - wanted.mean(-1, keepdims=True), axis=-1)
    assert np.median(far) < 1e-2
    assert far.max() < 0.2


def test_a_token_is_computed_alike_in_every_step(served: tuple[Path, Device]) -> None:
    """Bit for bit: in one piece, in pieces beside other rows, on a copied prefix, alone.

    What torch computes between our products and attention (norms, activations, positions) is the same for a token in
    any company as well, in one thread. Mutant seen to fail: a copy of whole blocks of columns only.
    """
    _, device = served
    tokens, other = prompt(), prompt(70, seed=2)
    one = np.array([1])
    whole = verify(device, 0, 0, tokens)
    pieces = []
    for first, last, beside in ((0, 5, 30), (5, 6, 1), (6, 64, 3), (64, 99, 36)):
        size = last - first
        both = np.zeros((2, max(size, beside)), np.int64)
        both[0, :size], both[1, :beside] = tokens[first:last], other[:beside]
        logits = device.verify(both, np.array([size, beside]), np.array([first, 0]), np.array([1, 3]))
        pieces.append(logits[0, :size].copy())
    assert (np.concatenate(pieces) == whole[:99]).all()
    verify(device, 2, 0, other)
    device.copy_row(1, 2, 37)
    assert (verify(device, 2, 37, tokens[37:99]) == whole[37:99]).all()
    assert (device.decode(tokens[[99, 99, 99]], np.array([99] * 3), np.array([2, 0, 1])) == whole[99]).all()
    assert (device.prefill(tokens[None, 98:], np.array([2]), np.array([98]), one) == whole[99]).all()


def test_threads_agree(tmp_path: Path) -> None:
    """Bit for bit."""
    folder = make("phi", tmp_path)
    one, three = load(folder), load(folder, threads=3)
    assert (verify(one, 0, 0, prompt()) == verify(three, 0, 0, prompt())).all()
    one.close()
    three.close()


@pytest.mark.parametrize("name", ["falcon-alibi", "gemma2", "phi", "gpt2"])
def test_4_bits_but_for_the_head_and_what_matters_most(name: str, tmp_path: Path) -> None:
    """A token's numbers are alike in every step. Mutants seen to fail: a head in 4 bits; all in 8."""
    device = load(make_uneven(name, tmp_path), weights="int4")
    layers = [module._layer for module in device._model.modules() if isinstance(module, NativeLinear)]  # type: ignore[attr-defined]
    assert {layer.dtype for layer in layers if layer.outputs == VOCABULARY} == {"int8"}
    sizes = [(layer.dtype, layer.inputs * layer.outputs) for layer in layers if layer.outputs != VOCABULARY]
    total, kept = sum(size for _, size in sizes), sum(size for dtype, size in sizes if dtype == "int8")
    assert {dtype for dtype, _ in sizes} <= {"int4", "int8"}
    assert kept <= 2 * members.KEPT * total  # a bound of packed bytes, which are padded
    tokens = prompt()
    whole = verify(device, 0, 0, tokens)
    pieces = [verify(device, 1, start, tokens[start : start + size]) for start, size in ((0, 3), (3, 60), (63, 37))]
    assert (np.concatenate(pieces) == whole).all()
    device.close()


def test_a_cache_is_bfloat16_unless_float32_is_asked_for(tmp_path: Path) -> None:
    folder = make("phi", tmp_path)
    plan = Plan("xeon", str(folder), rows=4, max_len=128)
    exact, short = load(folder), xeon.load(plan, xeon.Options(weights="int8", threads=1))
    wanted, found = verify(exact, 0, 0, prompt()), verify(short, 0, 0, prompt())
    assert {str(cache.keys.dtype) for cache in short._attention.arena.layers.values()} == {"uint16"}  # type: ignore[attr-defined]
    assert 0 < np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted - wanted.mean())
    exact.close()
    short.close()


def test_alibi_is_rounded_as_the_model_computes_and_not_as_it_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With slopes that are no powers of two. Mutant seen to fail: ALiBi in the cache's dtype."""
    plan = Plan("xeon", str(make("bloom", tmp_path, n_head=12)), rows=1, max_len=128)
    seen: list[npt.NDArray[np.float32]] = []
    honest = kernels.Parts.attend

    def spy(*given: Any, column_bias: npt.NDArray[np.float32], **entries: Any) -> npt.NDArray[np.float32]:
        seen.append(column_bias)
        return honest(*given, column_bias=column_bias, **entries)

    monkeypatch.setattr(kernels.Parts, "attend", spy)
    xeon.load(plan, xeon.Options(weights="int8", threads=1)).close()
    exact = alibi_slopes(12)[:, None] * torch.arange(128)
    assert (seen[0] == exact.to(getattr(torch, xeon.dtype_of(plan))).float().numpy()).all()


@pytest.mark.parametrize("part", ["linear", "attend"])
def test_wrong_numbers_are_refused_at_loading(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant seen to fail: the model with 8-bit weights held against nothing but itself."""
    honest = getattr(kernels.Parts, part)

    def wrong(*given: Any, **entries: Any) -> npt.NDArray[np.float32]:
        return np.roll(honest(*given, **entries), 1, axis=-1)

    monkeypatch.setattr(kernels.Parts, part, wrong)
    with pytest.raises(ModelRejected, match="refused rather than answered wrongly"):
        load(make("phi", tmp_path))
