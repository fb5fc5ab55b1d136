"""The stand-in of the Neuron packages is strict: what a Neuron device cannot do raises here, or does the same harm."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optimum.neuron", reason="needs optimum-neuron: .ci/run builds a virtual environment for it")
if find_spec("torch_neuronx") is not None and not hasattr(__import__("torch_neuronx"), "DataParallel"):
    pytest.skip("the real Neuron packages are installed", allow_module_level=True)

import torch
from optimum.neuron import NeuronModelForCausalLM
from transformers import AutoConfig

from tests.standins import neuron
from tests.standins.neuron.device import SESSIONS
from tests.tiny_models import make

ROWS, LENGTH, CORES = 4, 32, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("llama", tmp_path_factory.mktemp("standin") / "llama")


def exported(folder: Path, *, weights: bool = True, rows: int = ROWS, length: int = LENGTH, cores: int = CORES) -> Any:
    """Export as a user of optimum-neuron would, with logits for the host."""
    config = AutoConfig.from_pretrained(folder)
    neuron_config = NeuronModelForCausalLM.get_neuron_config(
        str(folder), config=config, batch_size=rows, sequence_length=length, tensor_parallel_size=cores
    )
    neuron_config.on_device_sampling = False
    return NeuronModelForCausalLM.export(str(folder), neuron_config, config=config, load_weights=weights)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return exported(folder)


def step(batch: int, length: int = 1, dtype: torch.dtype = torch.int32) -> list[torch.Tensor]:
    """The inputs of a graph, of the given shape."""
    zeros = torch.zeros(batch, length, dtype=dtype)
    return [zeros, zeros, torch.arange(batch, dtype=torch.int32), torch.ones(batch, 3)]


def caches(model: Any) -> list[torch.Tensor]:
    """A copy of the KV cache of the first core, `[rows, heads, columns, width]` per layer and kind."""
    session = SESSIONS[model._traced_model.nxd_model.session]
    return [state.clone() for state in session.states[0].values()]


def changed(before: list[torch.Tensor], after: list[torch.Tensor]) -> set[tuple[int, int]]:
    """Rows and columns whose keys or values differ."""
    places = [(a != b).nonzero()[:, [0, 2]].tolist() for a, b in zip(before, after, strict=True)]
    return {(row, column) for found in places for row, column in found}


def test_both_declared_shapes_run(model: Any) -> None:
    assert model._traced_model(*step(1, LENGTH)).shape == (1, 1, 384)
    assert model._traced_model(*step(ROWS)).shape == (ROWS, 1, 384)


@pytest.mark.parametrize(
    ("batch", "length"),
    [(1, 7), (2, LENGTH), (1, LENGTH + 1), (ROWS - 1, 1), (ROWS + 1, 1)],
    ids=["short prefill", "two prompts", "long prefill", "missing row", "extra row"],
)
def test_any_other_shape_raises(model: Any, batch: int, length: int) -> None:
    """Mutant: `_run` takes the graph of the nearest number of tokens."""
    with pytest.raises(RuntimeError, match="no compiled graph for input shapes"):
        model._traced_model(*step(batch, length))


def test_another_dtype_raises(model: Any) -> None:
    """Mutant: `_run` without its check of dtypes."""
    with pytest.raises(RuntimeError, match=r"compiled for torch\.int32, got torch\.int64"):
        model._traced_model(*step(ROWS, dtype=torch.int64))


def test_a_model_without_weights_raises(folder: Path) -> None:
    """Mutant: a session that opens at the first call."""
    with pytest.raises(RuntimeError, match="not initialized"):
        exported(folder, weights=False)._traced_model(*step(ROWS))


def test_weights_must_be_there_in_the_compiled_shape_and_dtype(model: Any) -> None:
    """Mutant: `_load_rank` without its check of weights."""
    fresh = model._traced_model.nxd_model
    session = SESSIONS[fresh.session]
    for spoil in (
        lambda shard: shard.pop("norm.weight"),
        lambda shard: shard.update({"norm.weight": shard["norm.weight"][1:]}),
        lambda shard: shard.update({"norm.weight": shard["norm.weight"].bfloat16()}),
    ):
        shards = [dict(shard) for shard in session.weights]
        spoil(shards[1])
        with pytest.raises(RuntimeError, match=r"rank 1: weight norm\.weight does not match"):
            fresh.initialize(shards, torch.zeros(1, dtype=torch.int32))


def test_a_checkpoint_per_rank_is_wanted(model: Any) -> None:
    """Mutant: `_load_rank` without its check of ranks."""
    shards = SESSIONS[model._traced_model.nxd_model.session].weights
    with pytest.raises(RuntimeError, match="compiled for 2 ranks, got 1"):
        model._traced_model.nxd_model.initialize([dict(shards[0])], torch.zeros(1, dtype=torch.int32))


def test_each_core_holds_its_own_part_of_the_weights(model: Any) -> None:
    """Mutant: every rank is given the whole weight's first part."""
    first, second = SESSIONS[model._traced_model.nxd_model.session].weights
    name = "layers.0.mlp.gate_proj.weight"
    assert first[name].shape == second[name].shape == (32, 48)
    assert not torch.equal(first[name], second[name])
    assert torch.equal(first["norm.weight"], second["norm.weight"])


def test_a_row_out_of_range_raises_where_hardware_clamps(model: Any) -> None:
    """Mutant: `DynamicUpdateSlice` clamps, as XLA does, and row 3 is overwritten."""
    before = caches(model)
    ids = torch.arange(5)[None]
    with pytest.raises(RuntimeError, match="out of range 0 to 3"):
        model.forward(ids, ids, torch.tensor([5]), torch.ones(1, 3))
    assert not changed(before, caches(model))


def test_a_position_out_of_range_raises(model: Any) -> None:
    ids = torch.zeros(ROWS, 1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="out of bounds"):
        model.forward(ids, ids + LENGTH, torch.arange(ROWS), torch.ones(ROWS, 3))


def test_a_decode_without_a_row_damages_that_row_as_on_hardware(model: Any) -> None:
    """Why the device names every row: the library fills up with copies of the first lane, and they are written."""
    for row in range(ROWS):
        ids = torch.arange(1, 7)[None] + row
        model.forward(ids, torch.arange(6)[None], torch.tensor([row]), torch.ones(1, 3))
    before = caches(model)
    model.forward(torch.tensor([[9]]), torch.tensor([[2]]), torch.tensor([1]), torch.ones(1, 3))
    assert changed(before, caches(model)) == {(row, 2) for row in range(ROWS)}


def test_a_prefill_writes_its_own_row_only(model: Any) -> None:
    before = caches(model)
    ids = torch.arange(20, 29)[None]
    model.forward(ids, torch.arange(9)[None], torch.tensor([2]), torch.ones(1, 3))
    assert {row for row, _ in changed(before, caches(model))} == {2}


def test_state_starts_as_zeros_and_survives_between_calls(folder: Path) -> None:
    fresh = exported(folder)
    assert not any(state.any() for state in caches(fresh))
    ids = torch.full((ROWS, 1), 9)
    fresh.forward(ids, ids * 0, torch.arange(ROWS), torch.ones(ROWS, 3))
    assert all(state[:, :, 0].any() and not state[:, :, 1:].any() for state in caches(fresh))


def test_compilations_are_counted_and_cached_by_shape(folder: Path) -> None:
    """Mutant: `_compile` that leaves shapes out of the key."""
    exported(folder, weights=False, rows=3, length=24)
    compiled, hits = neuron.COUNTERS.compiled, neuron.COUNTERS.cache_hits
    exported(folder, weights=False, rows=3, length=24)
    assert (neuron.COUNTERS.compiled - compiled, neuron.COUNTERS.cache_hits - hits) == (0, 2)
    exported(folder, weights=False, rows=2, length=24)
    assert neuron.COUNTERS.compiled - compiled == 2, "both graphs hold the KV cache, whose shape differs"


def test_a_model_that_is_loaded_again_compiles_nothing(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(str(tmp_path / "saved"))
    compiled, runs = neuron.COUNTERS.compiled, neuron.COUNTERS.executions.total()
    again = NeuronModelForCausalLM.from_pretrained(str(tmp_path / "saved"))
    assert torch.equal(again._traced_model(*step(1, LENGTH)), model._traced_model(*step(1, LENGTH)))
    assert neuron.COUNTERS.compiled == compiled
    assert neuron.COUNTERS.executions.total() == runs + 2
