"""llama.cpp, through llama-cpp-python's low-level interface: prompts are token ids, and several run in one batch.

llama-cpp-python's own `Llama` answers one prompt at a time; what it does for one is done here as well: keys and values
of the longest prefix that the last prompt shares are kept (`Llama.generate`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np

from benchmarks.xeon.peers import gguf_file
from benchmarks.xeon.peers.serving import Answer

PACKAGES = ("llama-cpp-python",)
BATCH = 2048  # tokens that one call takes; computed 512 at a time, llama.cpp's default (`-b`, `-ub`)
SEQUENCES = 16
COLUMNS = 2048  # of a prompt and its answer, alone
COLUMNS_TOGETHER = 768  # of each of several
MODEL = "model.gguf"

_quiet = lib.llama_log_callback(lambda *_: None)


def prepare(source: Path, into: Path, *, weights: str, flash: bool) -> None:
    """Write a checkpoint folder as llama.cpp's file, quantised by llama.cpp itself.

    Args:
        source: the checkpoint.
        into: folder to write to.
        weights: `"bf16"`, `"q8_0"` or `"q4_0"`.
        flash: the same for both.

    Raises:
        RuntimeError: llama.cpp could not quantise.
    """
    exact = into / ("exact.gguf" if weights != "bf16" else MODEL)
    gguf_file.write(source, exact)
    if weights == "bf16":
        return
    how = lib.llama_model_quantize_default_params()
    how.ftype = {"q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0}[weights]
    if failed := lib.llama_model_quantize(bytes(exact), bytes(into / MODEL), ctypes.byref(how)):
        msg = f"llama_model_quantize returned {failed}"
        raise RuntimeError(msg)
    exact.unlink()


def load(folder: Path, threads: int, *, weights: str, flash: bool) -> Answer:
    """Load a model.

    Args:
        folder: as `prepare` wrote it.
        threads: for prompts and for single tokens alike, at most one per core:
            https://github.com/ggml-org/llama.cpp/blob/master/docs/development/token_generation_performance_tips.md
        weights: as it was written.
        flash: use flash attention, as llama.cpp's tools do unless told otherwise:
            https://github.com/ggml-org/llama.cpp/tree/master/tools/server

    Raises:
        RuntimeError: llama.cpp could not load it.
    """
    lib.llama_log_set(_quiet, None)
    lib.llama_backend_init()
    settings = lib.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(bytes(folder / MODEL), settings)
    if not model:
        msg = f"llama.cpp could not load {folder / MODEL}"
        raise RuntimeError(msg)
    alone = Context(model, threads, 1, COLUMNS, flash=flash)
    together = Context(model, threads, SEQUENCES, COLUMNS_TOGETHER, flash=flash)

    def answer(prompts: Sequence[list[int]], new: int, shared: int, first: Callable[[], None]) -> list[list[int]]:
        return (alone if len(prompts) == 1 else together).answer(prompts, new, first)

    return answer


class Context:
    """Keys and values of some sequences.

    Args:
        model: llama.cpp's.
        threads: of a step.
        sequences: most that run at once.
        columns: of each.
        flash: use flash attention.
    """

    def __init__(self, model: Any, threads: int, sequences: int, columns: int, *, flash: bool) -> None:
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = sequences * columns, sequences
        settings.n_batch = BATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = False  # sequences that share nothing attend to their own columns only
        on, off = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED, lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.flash_attn_type = on if flash else off
        self._context = lib.llama_init_from_model(model, settings)
        self._vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        self._remembered: list[list[int]] = [[] for _ in range(sequences)]

    def answer(self, prompts: Sequence[list[int]], new: int, first: Callable[[], None]) -> list[list[int]]:
        """Answer prompts together; see `serving.Answer`."""
        wanted = []  # (token, column, sequence, whether its logits are read)
        for sequence, prompt in enumerate(prompts):
            kept = self._keep(sequence, prompt)
            last = len(prompt) - 1
            wanted += [(prompt[column], column, sequence, column == last) for column in range(kept, len(prompt))]
        made: list[list[int]] = [[] for _ in prompts]
        for begin in range(0, len(wanted), BATCH):
            self._decode(wanted[begin : begin + BATCH], made)
        first()
        for step in range(new - 1):
            self._decode([(said[-1], len(prompts[at]) + step, at, True) for at, said in enumerate(made)], made)
        for sequence, (prompt, said) in enumerate(zip(prompts, made, strict=True)):
            self._remembered[sequence] = [*prompt, *said[:-1]]
        return made

    def _keep(self, sequence: int, prompt: list[int]) -> int:
        """Forget what a sequence's columns hold beyond the prompt's prefix; return the length of that."""
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self._remembered[sequence], prompt[:-1], strict=False))
        kept = sum(1 for _ in same)
        lib.llama_memory_seq_rm(lib.llama_get_memory(self._context), sequence, kept, -1)
        return kept

    def _decode(self, wanted: Sequence[tuple[int, int, int, bool]], made: list[list[int]]) -> None:
        """Compute tokens; append the most probable next one where it is wanted."""
        batch = self._batch
        batch.n_tokens = len(wanted)
        for at, (token, column, sequence, read) in enumerate(wanted):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, column, 1
            batch.seq_id[at][0], batch.logits[at] = sequence, read
        if failed := lib.llama_decode(self._context, batch):
            msg = f"llama_decode returned {failed} for {len(wanted)} tokens"
            raise RuntimeError(msg)
        for at, (_, _, sequence, read) in enumerate(wanted):
            if read:
                logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, at), (self._vocabulary,))
                made[sequence].append(int(logits.argmax()))
