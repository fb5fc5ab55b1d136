"""Qwen2, Qwen3, and Llama on several ranks, through mindformers' mcore models: two dynamic graphs, tokens packed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from langchain_accel.devices.ascend.blocks import Strips
from langchain_accel.devices.ascend.configs import LLAMA3, packed
from langchain_accel.devices.ascend.weights import check_names
from langchain_accel.devices.base import IntArray, Progress


class PackedNetwork:
    """An mcore model: its tokens are one packed list, so that no lane is padded, and no shape compiles again.

    Four facts of mindformers 1.9.0 shape it:

    1. Which of its two graphs a call compiles follows from flags that the first call sets, and only a prefill sets
       them right: so the first call is one, and it happens here.
    2. A prefill of lanes that hold something already runs in the decode graph, with several tokens a lane.
    3. That graph takes its mask from `hard_mask`, which is made for one token a lane, and always in bfloat16.
    4. Weights that are missing are logged, and nothing else; those that have no place are not even that.
    """

    def __init__(self, model: Any, strips: Strips, dtype: Any) -> None:
        self._model, self._strips, self._dtype = model, strips, dtype
        self._one_token = ms.Tensor([[0.0]], dtype=dtype)
        model.hard_mask = self._one_token
        model.set_train(False)
        model._set_kv_cache()  # noqa: SLF001  what `generate` does first
        model._set_lower_triangle_mask()  # noqa: SLF001
        model.set_dynamic_inputs()

    @property
    def caches(self) -> list[Any]:
        """Keys and values of every layer, `[blocks, block_size, heads, width]` each."""
        return [*self._model.key_cache, *self._model.value_cache]

    def compile(self, progress: Progress) -> None:
        """Compile both graphs, on the first columns of row 0."""
        one = np.ones(1, np.int64)
        stage = "compiling graphs"
        progress(stage, 0, 2)
        self.prefill(one[None], one, 0 * one, 0 * one)
        progress(stage, 1, 2)
        self.decode(one, one, 0 * one)
        progress(stage, 2, 2)

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Any:
        """Return `[B, vocab_size]` logits; see `Device.prefill`."""
        real = np.arange(tokens.shape[1]) < lengths[:, None]
        columns = (starts[:, None] + np.arange(tokens.shape[1]))[real]
        if starts.any():
            self._model.hard_mask = ms.Tensor(self._strips.causal_mask(columns), dtype=self._dtype)
        try:
            return self._forward(tokens[real], columns, np.repeat(rows, lengths), starts, lengths, rows, prefill=True)
        finally:
            self._model.hard_mask = self._one_token

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Any:
        """Return `[B, vocab_size]` logits; see `Device.decode`."""
        return self._forward(tokens, positions, rows, positions, np.ones_like(rows), rows, prefill=False)

    def _forward(
        self,
        tokens: IntArray,
        columns: IntArray,
        owners: IntArray,
        starts: IntArray,
        lengths: IntArray,
        rows: IntArray,
        *,
        prefill: bool,
    ) -> Any:
        logits, _ = self._model.forward_mcore(
            input_ids=tokens.astype(np.int32),
            valid_length_each_example=(starts + lengths).astype(np.int32),
            block_tables=self._strips.tables(rows),
            slot_mapping=self._strips.slots(owners, columns),
            prefill=prefill,
            q_seq_lens=lengths.astype(np.int32),
            position_ids=columns.astype(np.int32),
        )
        return logits


def open_packed(
    folder: Path, config: Mapping[str, Any], strips: Strips, dtype: str, settings: Mapping[str, Any]
) -> PackedNetwork:
    """Build a model and load its weights, or this rank's share of them.

    Args:
        folder: with the weights, as safetensors.
        config: the model's, in the form of transformers 4.
        strips: the KV cache.
        dtype: of weights, KV cache and arithmetic.
        settings: what `stack.context` returned.

    Raises:
        ModelRejected: the weights are not those of this config.
    """
    from mindformers import AutoModel, MindFormerConfig

    wanted = ("compute_dtype", "layernorm_compute_dtype", "softmax_compute_dtype", "rotary_dtype", "params_dtype")
    with tempfile.TemporaryDirectory() as rewritten:  # mindformers reads config.json itself, as transformers 4 wrote it
        written = json.dumps({**packed(config), "rope_scaling": None})
        (Path(rewritten) / "config.json").write_text(written, encoding="utf-8")
        whole = MindFormerConfig(
            **settings,
            pretrained_model_dir=rewritten,
            model={
                "model_config": {
                    **dict.fromkeys(wanted, dtype),
                    "seq_length": strips.columns,
                    "block_size": strips.block_size,
                    "num_blocks": strips.pool,
                }
            },
        )
        model = AutoModel.from_config(whole)
    if config["rope_scaling"]:
        _scale_positions(model.model, config["rope_scaling"])
    _load_weights(model, folder, tied=bool(config.get("tie_word_embeddings")))
    return PackedNetwork(model, strips, getattr(ms, dtype))


def _scale_positions(network: Any, scaling: Mapping[str, Any]) -> None:
    """Give a model the rotary positions of Llama 3.

    mindformers 1.9.0 computes them rightly, but no config leads there: it knows them by another name, asks for a number
    that nobody gives, and takes the low frequency factor for the high one.
    """
    from mindformers.parallel_core.inference.base_models.common.embeddings import rotary_pos_embedding

    plain = network.rotary_pos_emb
    factor, low, high, original = (scaling[name] for name in LLAMA3)
    scaled = rotary_pos_embedding.Llama3RotaryEmbedding(
        kv_channels=plain.kv_channels,
        rotary_base=plain.rotary_base,
        rotary_dtype=plain.rotary_dtype,
        max_position_embeddings=plain.max_position_embeddings,
        scaling_factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        orig_max_position=original,
    )
    plain.cos_cache, plain.sin_cache = scaled.cos_cache, scaled.sin_cache


def _load_weights(model: Any, folder: Path, *, tied: bool) -> None:
    """As `model.load_weights`, which only logs what does not fit."""
    network, mapping = model.model, model.generate_mapping()
    files = model.get_weights_files(str(folder))
    taken = {}

    def noted(weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for name, weight in weights:
            taken[name] = next((name.replace(part, whole) for whole, part, _ in mapping if part in name), name)
            yield name, weight

    weights = model._safetensors_weights_iterator(files)  # noqa: SLF001  a generator that reads one after the other
    network.load_weights(noted(weights), mapping, model.check_hf_weight(weights_files=files))
    model.process_weights_after_loading(network)
    check_names(folder, set(network.get_params_dict()), taken, tied=tied)
