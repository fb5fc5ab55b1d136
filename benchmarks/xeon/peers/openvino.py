"""OpenVINO GenAI: `LLMPipeline`, or `ContinuousBatchingPipeline`.

The CPU plugin quantises activations and keys and values to 8 bits by default, as its documentation advises for language
models: https://docs.openvino.ai/2025/openvino-workflow-generative/inference-with-optimum-intel.html
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.xeon.peers.serving import Answer

PACKAGES = ("openvino", "openvino-genai", "optimum-intel", "nncf")
CACHE_GIB = 2
SEQUENCES = 16
TOKENS_PER_STEP = 2048

FORMS = {
    "int8": (),
    # A scale per 64 numbers, all layers: https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/weight-compression/4-bit-weight-quantization.html
    "int4": ("--sym", "--group-size", "64", "--ratio", "1.0"),
}


def prepare(source: Path, into: Path, *, weights: str, through: str) -> None:
    """Export a checkpoint folder with optimum-intel.

    Args:
        source: the checkpoint.
        into: folder to write to.
        weights: `"int8"` or `"int4"`.
        through: the same for both pipelines.
    """
    exporter = Path(sys.executable).with_name("optimum-cli")
    task = ("--task", "text-generation-with-past", "--weight-format", weights, *FORMS[weights])
    subprocess.run(  # noqa: S603 - our own interpreter's tool, our own arguments
        [exporter, "export", "openvino", "--model", source, *task, into], check=True
    )


def load(folder: Path, threads: int, *, weights: str, through: str) -> Answer:
    """Load a model.

    One request at a time is what the latency hint is for, many what the throughput hint is for:
    https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/high-level-performance-hints.html

    Args:
        folder: as `prepare` wrote it.
        threads: of inference.
        weights: as it was exported.
        through: `"llm"` or `"continuous"`.
    """
    schedule = genai.SchedulerConfig()
    schedule.enable_prefix_caching = True
    schedule.cache_size = CACHE_GIB
    schedule.max_num_seqs = SEQUENCES
    schedule.max_num_batched_tokens = TOKENS_PER_STEP
    properties = {"INFERENCE_NUM_THREADS": threads}
    if through == "llm":
        properties["PERFORMANCE_HINT"] = "LATENCY"
        return _single(genai.LLMPipeline(folder, "CPU", scheduler_config=schedule, **properties))
    properties["PERFORMANCE_HINT"] = "THROUGHPUT"
    return _continuous(genai.ContinuousBatchingPipeline(folder, schedule, "CPU", properties))


class First(genai.StreamerBase):
    """Tells when the first token came."""

    def __init__(self, first: Callable[[], None]) -> None:
        super().__init__()
        self._first = first

    def write(self, token: Any) -> Any:
        """Take a token, or several."""
        self._first()
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is left to show."""


def _greedy(new: int) -> Any:
    how = genai.GenerationConfig()
    how.max_new_tokens = how.min_new_tokens = new
    how.ignore_eos, how.do_sample = True, False
    how.set_eos_token_id(0)  # a tokenizer without one is refused, though none is honoured
    return how


def _single(pipe: Any) -> Answer:
    def answer(prompts: Sequence[list[int]], new: int, shared: int, first: Callable[[], None]) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = np.array([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = np.array([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        streamer = (First(first),) if len(prompts) == 1 else ()
        done = pipe.generate(genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(mask)), _greedy(new), *streamer)
        return [list(tokens) for tokens in done.tokens]

    return answer


def _continuous(pipe: Any) -> Answer:
    def answer(prompts: Sequence[list[int]], new: int, shared: int, first: Callable[[], None]) -> list[list[int]]:
        streamer = (First(first),) if len(prompts) == 1 else ()
        done = pipe.generate(
            [ov.Tensor(np.array([prompt])) for prompt in prompts], [_greedy(new)] * len(prompts), *streamer
        )
        return [list(each.m_generation_ids[0]) for each in done]

    return answer
