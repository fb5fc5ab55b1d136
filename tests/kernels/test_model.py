"""Whole steps of every member of the family, against torch and against themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_accel_kernels", reason="pip install ./kernels")
pytest.importorskip("torch")

import langchain_accel_kernels as kernels
import torch
from transformers import AutoModelForCausalLM

from langchain_accel.devices import xeon
from langchain_accel.devices.base import Device, Plan
from langchain_accel.devices.native import members
from langchain_accel.devices.native.device import NativeDevice
from langchain_accel.errors import PlanRejected
from tests.kernels.holding import FAMILY, SETS, WIDE, hold_what_kernels_hold, make_wide
from tests.tiny_models import VOCABULARY, make

SET = kernels.instructions()
WEIGHTS = ("exact", "int8", "int4")
SERVED = [
    *(f"{name} {weights} auto float32" for weights in WEIGHTS for name in FAMILY),
    *(f"{name} exact auto bfloat16" for name in FAMILY),
    *("llama int8 int8 float32", "mistral exact int8 float32", "llama exact int8 bfloat16"),
]
LONG = 128


def load(folder: Path, dtype: str = "float32", **options: Any) -> Device:
    plan = Plan("xeon", str(folder), rows=4, max_len=LONG, dtype=dtype)
    return xeon.load(plan, xeon.Options(**{"weights": "int8", "prefill_chunk": 32, "threads": 1, **options}))


def prompt(size: int = 100, seed: int = 1) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(5, VOCABULARY, size)


@pytest.fixture(scope="module", params=SERVED)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Device]]:
    name, weights, kv_cache, dtype = request.param.split()
    folder = make_wide(name, tmp_path_factory.mktemp("wide") / name)
    device = load(folder, dtype, weights=weights, kv_cache=kv_cache)
    yield folder, device
    device.close()


def test_members_are_among_the_models(served: tuple[Path, Device]) -> None:
    assert isinstance(served[1], NativeDevice)


def test_logits_are_those_of_the_weights(served: tuple[Path, Device]) -> None:
    """At every token of 100: past windows, and past a block of columns.

    Mutants seen to fail, refused by the self-check before that: a window one column longer; positions of a neighbour;
    values of the next head; halves of a layer in a row that stand side by side; GELU by tanh where it is exact; no cap
    on logits; no norm of what is added.
    """
    folder, device = served
    assert isinstance(device, NativeDevice)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    hold_what_kernels_hold(model, device)
    tokens = prompt()
    with torch.inference_mode():
        wanted = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    found = device.verify(tokens[None], np.array([len(tokens)]), np.array([0]), np.array([2]))[0]
    far = np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted - wanted.mean(-1, keepdims=True), axis=-1)
    # What lies between two levels may be rounded either way: few logits differ, and these not by much.
    exact = device._model._kept[1].head.dtype == "float32" and device._model.numbers.cache == "float32"
    median, most = (1e-4, 1e-3) if exact else (5e-2, 0.2)
    assert np.median(far) < median
    assert far.max() < most


def test_a_token_is_computed_alike_in_every_step(served: tuple[Path, Device]) -> None:
    """Bit for bit: in one piece, in pieces beside other rows, on a copied prefix, alone.

    Mutants seen to fail: one column of values too few copied; panels of 4 bits made into 8 where they lie in 4.
    """
    _, device = served
    tokens, other = prompt(), prompt(70, seed=2)
    one = np.array([1])
    whole = device.verify(tokens[None], np.array([100]), np.array([0]), one * 0)[0].copy()
    pieces = []
    for first, last, beside in ((0, 5, 30), (5, 6, 1), (6, 64, 3), (64, 99, 36)):
        size = last - first
        both = np.zeros((2, max(size, beside)), np.int64)
        both[0, :size], both[1, :beside] = tokens[first:last], other[:beside]
        logits = device.verify(both, np.array([size, beside]), np.array([first, 0]), np.array([1, 3]))
        pieces.append(logits[0, :size].copy())
    assert (np.concatenate(pieces) == whole[:99]).all()
    device.verify(other[None], np.array([70]), np.array([0]), one * 2)
    device.copy_row(1, 2, 37)
    again = device.verify(tokens[None, 37:99], np.array([62]), np.array([37]), one * 2)[0]
    assert (again == whole[37:99]).all()
    last = device.decode(tokens[[99, 99, 99]], np.array([99] * 3), np.array([2, 0, 1]))
    assert (last == whole[99]).all()
    assert (device.prefill(tokens[None, 98:], np.array([2]), np.array([98]), one) == whole[99]).all()


def test_logits_of_some_tokens_are_those_of_all(served: tuple[Path, Device]) -> None:
    """In any order, some of them twice, of two rows: the last layer is computed for these only.

    Mutants seen to fail: attention, the residual stream, or what a layer read before (where its halves stand side by
    side), of the token in a wanted one's slot.
    """
    _, device = served
    assert isinstance(device, NativeDevice)
    tokens = np.concatenate([prompt(70), prompt(30, seed=2)])
    rows, columns = np.repeat([0, 3], [70, 30]), np.concatenate([np.arange(70), np.arange(30)])
    step = device._model.step
    every = step(tokens, rows, columns, np.arange(100))
    some = np.array([99, 3, 69, 70, 3, 71, 0])
    assert (step(tokens, rows, columns, some) == every[some]).all()
    assert step(tokens, rows, columns, some[:0]).shape == (0, VOCABULARY)
    after = np.array([70]), np.array([0]), np.array([70]), np.array([0])
    found = step(*after)
    step(tokens, rows, columns, np.arange(100))
    assert (step(*after) == found).all()


def test_a_copy_leaves_the_columns_behind_it_alone(served: tuple[Path, Device]) -> None:
    """Mutant seen to fail: the whole last block of keys copied."""
    _, device = served
    mine, other = prompt(40), prompt(40, seed=3)
    other[:10] = mine[:10]
    for row, tokens in enumerate((mine, other)):
        device.prefill(tokens[None], np.array([40]), np.array([0]), np.array([row]))
    before = device.decode(mine[:1], np.array([40]), np.array([0])).copy()
    device.copy_row(1, 0, 10)
    assert (device.decode(mine[:1], np.array([40]), np.array([0])) == before).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_instruction_sets_agree(
    name: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads bit for bit. Mutant seen to fail: no meeting between the keys' writing and the attention."""
    folder = make_wide("llama", tmp_path)
    right = load(folder)
    monkeypatch.setenv("LANGCHAIN_ACCEL_INSTRUCTIONS", name)
    if kernels.instructions() != name:
        pytest.skip(f"this processor has no {name}")
    device = load(folder, threads=threads)
    native = kernels.instructions() == SET
    for seed in range(5):
        arguments = (prompt(100, seed)[None], np.array([100]), np.array([0]), np.array([0]))
        found, wanted = device.prefill(*arguments), right.prefill(*arguments)
        if native:
            assert (found == wanted).all()
        np.testing.assert_allclose(found, wanted, atol=0.1 * np.abs(wanted).max())
    device.close()
    right.close()


@pytest.mark.parametrize(("kv_cache", "bytes_of"), [("auto", 2), ("int8", 1)])
def test_a_short_cache_is_close_to_an_exact_one(kv_cache: str, bytes_of: int, tmp_path: Path) -> None:
    """Mutants seen to fail: the scale of a neighbouring column; values without their scale."""
    folder = make_wide("llama", tmp_path)
    exact, short = load(folder), load(folder, dtype="auto", kv_cache=kv_cache)
    assert isinstance(short, NativeDevice)
    assert short._model.numbers.cache == {2: "bfloat16", 1: "int8"}[bytes_of]
    arguments = (prompt()[None], np.array([100]), np.array([0]), np.array([0]))
    wanted, found = exact.prefill(*arguments)[0], short.prefill(*arguments)[0]
    assert 0 < np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted - wanted.mean())
    exact.close()
    short.close()


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_bfloat16_checkpoint_is_held_in_16_bits_and_computed_in_32(name: str, tmp_path: Path) -> None:
    """Mutants seen to fail: numbers held in float32; a root rounded to bfloat16."""
    folder = make_wide(name, tmp_path)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    device = load(folder, weights="exact")
    assert isinstance(device, NativeDevice)
    layers, ends = device._model._kept
    assert {ends.head.dtype, layers[0].qkv.dtype, str(ends.embedding.dtype)} == {"bfloat16", "uint16"}
    model, tokens = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), prompt()
    with torch.inference_mode():
        wanted = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    found = device.verify(tokens[None], np.array([len(tokens)]), np.array([0]), np.array([0]))[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    device.close()


@pytest.mark.parametrize("name", FAMILY)
def test_bfloat16_is_closer_to_float32_than_transformers_comes(name: str, tmp_path: Path) -> None:
    """Products take numbers in bfloat16, and everything between them is float32.

    Mutant seen to fail: exact weights computed in float32 whatever is asked for.
    """
    folder = make_wide(name, tmp_path)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    tokens, logits = prompt(), []
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        with torch.inference_mode():
            logits.append(model(torch.from_numpy(tokens)[None]).logits[0].float().numpy())
    device = load(folder, "bfloat16", weights="exact")
    assert isinstance(device, NativeDevice)
    layers, ends = device._model._kept
    assert {ends.head.dtype, layers[0].qkv.dtype, str(ends.embedding.dtype)} == {"bfloat16_pairs", "uint16"}
    assert device._model.numbers.cache == "bfloat16"
    found = device.verify(tokens[None], np.array([len(tokens)]), np.array([0]), np.array([0]))[0]
    assert 0 < np.linalg.norm(found - logits[0]) < 0.95 * np.linalg.norm(logits[1] - logits[0])
    device.close()


def test_an_8_bit_cache_needs_whole_steps(tmp_path: Path) -> None:
    with pytest.raises(PlanRejected, match="whole steps, and here: model type 'phi' is none of"):
        load(make("phi", tmp_path), kv_cache="int8")
    with pytest.raises(PlanRejected, match="must be 'auto' or 'int8', got 'int2'"):
        xeon.Options(kv_cache="int2")


def test_a_closed_device_is_not_asked(tmp_path: Path) -> None:
    """Mutant seen to fail, by taking the process with it: the library asked all the same."""
    device = load(make_wide("llama", tmp_path))
    device.close()
    device.close()
    with pytest.raises(RuntimeError, match="the model is closed"):
        device.decode(np.array([5]), np.array([0]), np.array([0]))
    with pytest.raises(RuntimeError, match="the model is closed"):
        device.copy_row(0, 1, 1)


def test_numbers_out_of_range_are_refused(served: tuple[Path, Device]) -> None:
    _, device = served
    with pytest.raises(RuntimeError, match="token, row or column 1 of the step is out of range"):
        device.decode(np.array([5, VOCABULARY]), np.array([0, 0]), np.array([0, 1]))
    with pytest.raises(RuntimeError, match="length of the copy is out of range"):
        device.copy_row(0, 1, LONG + 1)
    device.decode(np.array([5, 6]), np.array([0, 0]), np.array([0, 1]))


def test_a_model_has_a_layer(served: tuple[Path, Device]) -> None:
    """Without one, the logits would be of memory that nobody wrote. Fails without the check."""
    device = served[1]
    assert isinstance(device, NativeDevice)
    with pytest.raises(ValueError, match="must have a layer"):
        kernels.Model(device._model.numbers, [], device._model._kept[1])


class TestWhatTheKernelsLeaveToTorch:
    """`unusable` says why, and torch makes the steps: `tests/devices/test_native_linear.py`."""

    @pytest.mark.parametrize(
        ("name", "overrides", "reason"),
        [
            ("phi", {}, "'phi' is none of bloom, falcon, gemma, gemma2"),
            ("llama", {}, "heads are 8 wide"),
            ("stablelm", {**WIDE, "qk_layernorm": True}, "it asks for qk_layernorm"),
            ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
            ("llama", {**WIDE, "hidden_act": "relu"}, "its activation is 'relu'"),
            ("llama", {**WIDE, "intermediate_size": 100}, "intermediate_size of 100 is no multiple of 16"),
            (
                "llama",
                {**WIDE, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
                "'dynamic' change with the length",
            ),
        ],
    )
    def test_for_a_reason(self, name: str, overrides: dict[str, Any], reason: str, tmp_path: Path) -> None:
        from transformers import AutoConfig

        folder = make(name, tmp_path, **overrides)
        said = members.unusable(AutoConfig.from_pretrained(folder).to_dict())
        assert said is not None
        assert reason in said
