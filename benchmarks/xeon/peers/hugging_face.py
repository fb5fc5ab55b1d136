"""transformers: `HuggingFacePipeline` as LangChain's documentation shows it, or its own `generate`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, pipeline
from transformers.generation.streamers import BaseStreamer

from benchmarks.xeon.models import text
from benchmarks.xeon.peers.serving import Answer

PACKAGES = ("torch", "transformers")


class First(BaseStreamer):
    """Tells when the first token came; what is put before it is the prompt."""

    def __init__(self, first: Callable[[], None]) -> None:
        self._first, self._put = first, 0

    def put(self, value: Any) -> None:
        """Take the prompt, then one token after another."""
        self._put += 1
        if self._put > 1:
            self._first()

    def end(self) -> None:
        """Nothing is left to show."""


def load(folder: Path, threads: int, *, through: str, dtype: str) -> Answer:
    """Load a model.

    Args:
        folder: of the checkpoint.
        threads: of torch.
        through: `"pipeline"` (LangChain's `HuggingFacePipeline`), `"generate"` (dynamic cache; a shared context is
            computed once and copied, https://huggingface.co/docs/transformers/main/kv_cache#prefill-a-cache-prefix-caching)
            or `"static"` (static cache, not compiled: https://huggingface.co/docs/transformers/main/llm_optims).
        dtype: `"bfloat16"` or `"float32"`.
    """
    torch.set_num_threads(threads)
    # Its attention is SDPA wherever transformers has that for the architecture, which is not so for BLOOM.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None
    if through == "pipeline":
        return _pipeline(model, folder)
    return _generate(model, "static" if through == "static" else None)


def _generate(model: Any, cache: str | None) -> Answer:
    kept: dict[tuple[int, ...], DynamicCache] = {}

    def context(prompt: list[int], shared: int) -> DynamicCache:
        """Return a copy of the keys and values of a prompt's shared part."""
        key = tuple(prompt[:shared])
        if key not in kept:
            kept.clear()
            kept[key] = DynamicCache(config=model.config)
            model(torch.tensor([key]), past_key_values=kept[key], logits_to_keep=1)
        return copy.deepcopy(kept[key])

    @torch.inference_mode()
    def answer(prompts: Sequence[list[int]], new: int, shared: int, first: Callable[[], None]) -> list[list[int]]:
        longest = max(map(len, prompts))
        settings: dict[str, Any] = {} if cache is None else {"cache_implementation": cache}
        if len(prompts) == 1:
            settings["streamer"] = First(first)
            if shared and cache is None:
                settings["past_key_values"] = context(prompts[0], shared)
        done = model.generate(
            torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts]),
            attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
            do_sample=False,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
            **settings,
        )
        return done[:, longest:].tolist()

    return answer


def _pipeline(model: Any, folder: Path) -> Answer:
    """Padding on the left and a batch as large as the call: https://docs.langchain.com/oss/python/integrations/llms/huggingface_pipelines."""
    from langchain_huggingface import HuggingFacePipeline

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side, tokenizer.pad_token_id = "left", 0
    generate, made = model.generate, []

    def noted(*args: Any, **settings: Any) -> Any:
        """Its answers are text: the tokens they were made of are seen here only."""
        done = generate(*args, **settings)
        made.extend(done[:, settings["input_ids"].shape[1] :].tolist())
        return done

    model.generate = noted
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)

    def answer(prompts: Sequence[list[int]], new: int, shared: int, first: Callable[[], None]) -> list[list[int]]:
        settings: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
        settings["batch_size"] = len(prompts)
        if len(prompts) == 1:
            settings["streamer"] = First(first)
        made.clear()
        llm = HuggingFacePipeline(pipeline=pipe, batch_size=len(prompts))
        llm.generate([text(prompt) for prompt in prompts], pipeline_kwargs=settings)
        return list(made)

    return answer
