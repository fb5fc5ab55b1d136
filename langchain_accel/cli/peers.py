"""Who answers a workload: this package, and what else is installed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from langchain_accel.cli.workloads import Answer, Tokens
from langchain_accel.runtime.batch import Job, complete
from langchain_accel.runtime.door import Door
from langchain_accel.runtime.request import SamplingParams

OURS = "langchain-accel"


def ours(engine: Door) -> Answer:
    """Answer through an engine, without drafts: random prompts end in loops, and drafts would skip through them."""

    def answer(prompts: Sequence[Tokens], new: int) -> list[Tokens]:
        params = SamplingParams(max_tokens=new, ignore_eos=True, prompt_lookup=False)
        return [list(done.tokens) for done in complete(engine, [Job(prompt, params) for prompt in prompts])]

    return answer


def transformers(folder: Path, dtype: str, *, trust_remote_code: bool = False) -> Answer:
    """Answer with transformers' `generate` as its documentation advises: SDPA attention, one batch padded on the left.

    Args:
        folder: of the model.
        dtype: `"float32"` or `"bfloat16"`.
        trust_remote_code: run Python code that comes with the model.
    """
    import torch

    model = _model(folder, dtype, trust_remote_code=trust_remote_code)

    def answer(prompts: Sequence[Tokens], new: int) -> list[Tokens]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            done = model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0
            )
        whole: list[Tokens] = done[:, longest:].tolist()
        return whole

    return answer


def hugging_face_pipeline(folder: Path, dtype: str, *, trust_remote_code: bool = False) -> Answer:
    """Answer with LangChain's `HuggingFacePipeline`; arguments as `transformers`.

    It takes text, so a prompt is decoded first and may have a few tokens more or less when it is read again.
    """
    from langchain_huggingface import HuggingFacePipeline
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    tokenizer.padding_side, tokenizer.pad_token_id = "left", 0
    model = _model(folder, dtype, trust_remote_code=trust_remote_code)
    generate, made = model.generate, []

    def noted(*args: Any, **settings: Any) -> Any:
        """Its answers are text: the tokens they were made of are seen here only."""
        done = generate(*args, **settings)
        made.extend(done[:, settings["input_ids"].shape[1] :].tolist())
        return done

    model.generate = noted
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)

    def answer(prompts: Sequence[Tokens], new: int) -> list[Tokens]:
        settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "batch_size": len(prompts)}
        llm = HuggingFacePipeline(pipeline=pipe, batch_size=len(prompts))
        made.clear()
        llm.generate([tokenizer.decode(prompt) for prompt in prompts], pipeline_kwargs=settings)
        return list(made)

    return answer


def _model(folder: Path, dtype: str, *, trust_remote_code: bool) -> Any:
    """Return transformers' model, which the calling thread then runs."""
    import torch
    from transformers import AutoModelForCausalLM

    from langchain_accel.devices.processors import cores
    from langchain_accel.devices.torch_rows.threads import use_threads

    use_threads(cores())  # as many as the xeon device takes
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=trust_remote_code
    )
    model.generation_config.eos_token_id = None
    return model


PEERS: Mapping[str, tuple[str, Callable[..., Answer]]] = MappingProxyType(
    {
        "transformers": ("transformers", transformers),
        "HuggingFacePipeline": ("langchain_huggingface", hugging_face_pipeline),
    }
)
"""Peers by name: the module each needs, and what loads it."""


def absent() -> list[str]:
    """Return the peers that are not installed here."""
    return [name for name, (module, _) in PEERS.items() if find_spec(module) is None]
