"""Llama through mindformers' older model: one graph of fixed shape per declared prefill and decode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from langchain_accel.devices.ascend.blocks import Strips
from langchain_accel.devices.ascend.configs import LLAMA3
from langchain_accel.devices.ascend.weights import check_names
from langchain_accel.devices.base import IntArray, Progress
from langchain_accel.devices.memory import weight_files

_CACHES = (".key_cache", ".value_cache")


class PaddedNetwork:
    """A legacy Llama: every declared shape has a graph of its own.

    Three facts of MindSpore 2.9.0 and mindformers 1.9.0 shape it:

    1. A graph is found by the model's `phase`. For the two names that mindformers uses, `"prefill"` and
       `"increment"`, MindSpore runs the graph that was compiled first whatever the shape of its inputs, and reads
       what lies behind them in memory. Every other name is checked: so a phase is named after its shape here.
    2. Prompts that are resumed, or come in pieces, are what `chunk_prefill` is for. It leaves decoding without a mask,
       which fails: so it is switched off for decode graphs. Flags are read when a graph is compiled.
    3. `load_param_into_net` returns the names of missing weights, and does not mind.
    """

    def __init__(self, model: Any, strips: Strips) -> None:
        self._model, self._strips, self._chunks = model, strips, True
        model.set_train(False)

    @property
    def caches(self) -> list[Any]:
        """Keys and values of every layer, `[blocks, block_size, heads, width]` each."""
        return [parameter for name, parameter in self._model.parameters_and_names() if name.endswith(_CACHES)]

    def compile(self, progress: Progress) -> None:
        """Nothing to do: each shape is compiled when it is warmed up."""

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Any:
        """Return `[B, vocab_size]` logits; see `Device.prefill`."""
        batch, length = tokens.shape
        columns = starts[:, None] + np.arange(length)
        self._use(f"prefill_b{batch}_l{length}", chunks=True)
        return self._model.chunk_prefill_infer(
            input_ids=tokens,
            batch_valid_length=np.minimum(starts + length, self._strips.columns),
            block_tables=self._strips.tables(rows),
            slot_mapping=self._strips.slots(rows[:, None], columns).ravel(),
            gather_index=np.arange(batch) * length + lengths,
            seq_range=np.minimum(columns, self._strips.columns - 1).ravel(),
            q_seq_lens=np.full(batch, length),
        )

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Any:
        """Return `[B, vocab_size]` logits; see `Device.decode`."""
        self._use(f"increment_b{len(tokens)}", chunks=False)
        self._model._set_network_phase(f"b{len(tokens)}")  # noqa: SLF001  the library's own way to name a phase
        logits, _ = self._model.forward(
            input_ids=tokens[:, None],
            valid_length_each_example=(positions + 1).astype(np.int32),
            block_tables=self._strips.tables(rows),
            slot_mapping=self._strips.slots(rows, positions),
            prefill=False,
            use_past=True,
        )
        return logits

    def _use(self, phase: str, *, chunks: bool) -> None:
        """Choose the graph, and set the flags that it is compiled with."""
        model = self._model
        model.phase = phase
        if chunks != self._chunks:
            self._chunks = chunks
            model.add_flags_custom(is_first_iteration=chunks)
            for _, cell in model.cells_and_names():
                if hasattr(cell, "chunk_prefill"):
                    cell.add_flags(chunk_prefill=chunks)


def open_padded(folder: Path, config: Mapping[str, Any], strips: Strips, dtype: str, rows: int) -> PaddedNetwork:
    """Build a Llama and load its weights.

    Args:
        folder: with the weights, as safetensors.
        config: the model's, in the form of transformers 4.
        strips: the KV cache.
        dtype: of weights, KV cache and arithmetic.
        rows: rows of the arena.

    Raises:
        ModelRejected: the weights are not those of this config.
    """
    from mindformers import LlamaConfig, LlamaForCausalLM

    ropes: dict[str, Any] = {}
    if scaling := config["rope_scaling"]:
        numbers = {name: scaling[name] for name in LLAMA3}  # any other entry is refused, and so is a whole factor
        ropes = {"extend_method": "LLAMA3", "scaling_factor": {**numbers, "factor": float(numbers["factor"])}}
    model = LlamaForCausalLM(
        LlamaConfig(
            batch_size=rows,
            seq_length=strips.columns,
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            n_kv_heads=config.get("num_key_value_heads"),
            max_position_embedding=max(strips.columns, config["max_position_embeddings"]),
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            rms_norm_eps=config["rms_norm_eps"],
            theta=config["rope_theta"],
            tie_word_embeddings=config.get("tie_word_embeddings", False),
            **ropes,
            compute_dtype=dtype,
            param_init_type=dtype,
            layernorm_compute_type="float32",
            softmax_compute_type="float32",
            rotary_dtype=dtype,
            use_past=True,
            chunk_prefill=True,
            block_size=strips.block_size,
            num_blocks=strips.pool,
            use_rope_slice=True,
        )
    )
    _load_weights(model, folder, dtype, tied=bool(config.get("tie_word_embeddings")))
    return PaddedNetwork(model, strips)


def _load_weights(model: Any, folder: Path, dtype: str, *, tied: bool) -> None:
    wanted, taken = getattr(ms, dtype), dict[str, str]()
    for file in weight_files(folder):
        read = ms.load_checkpoint(str(file), format="safetensors")
        named = {model.convert_name(name): value for name, value in read.items()}
        taken |= {name: name for name in named}
        ms.load_param_into_net(
            model, {name: ms.Parameter(value.astype(wanted), name=name) for name, value in named.items()}
        )
    parameters = {name for name in model.parameters_dict() if not name.endswith(_CACHES)}
    check_names(folder, parameters, taken, tied=tied)
