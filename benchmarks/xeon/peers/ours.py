"""The Xeon device: its engine alone, or through `ChatXeon` as a user calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.xeon.models import text, tokens
from benchmarks.xeon.peers.serving import Answer
from langchain_accel import ChatXeon, XeonOptions
from langchain_accel.runtime.batch import Job, submitted
from langchain_accel.runtime.request import SamplingParams

PACKAGES = ("langchain-accel", "langchain-accel-kernels", "torch", "transformers")
ROWS, MAX_LEN = 16, 2048


def load(folder: Path, threads: int, *, through: str, dtype: str, **options: Any) -> Answer:
    """Load a model.

    Random prompts end in loops, and drafts would skip through them: there are none.

    Args:
        folder: of the checkpoint.
        threads: cores of a step.
        through: `"engine"` or `"chat"`.
        dtype: `"auto"`, `"float32"` or `"bfloat16"`.
        **options: of the device.
    """
    llm = ChatXeon(
        model=str(folder),
        rows=ROWS,
        max_len=MAX_LEN,
        dtype=dtype,
        options=XeonOptions(threads=threads, **options),
        chat_template="{{ messages[0].content }}",
        ignore_eos=True,
        prompt_lookup=False,
        progress_bar=False,
    ).load()
    return _chat(llm) if through == "chat" else _engine(llm)


def _engine(llm: ChatXeon) -> Answer:
    lease = llm._engine_lease()  # noqa: SLF001 - what is measured is the layer below the public one

    def answer(prompts: Sequence[list[int]], new: int, shared: int, first: Callable[[], None]) -> list[list[int]]:
        params = SamplingParams(max_tokens=new, ignore_eos=True, prompt_lookup=False)
        made = []
        with closing(submitted(lease.engine, [Job(prompt, params) for prompt in prompts])) as streams:
            for stream in streams:
                if len(prompts) > 1:
                    made.append(list(stream.result().tokens))
                    continue
                made.append([])
                for delta in stream:
                    first()
                    made[-1].extend(delta.tokens)
        return made

    return answer


def _chat(llm: ChatXeon) -> Answer:
    def answer(prompts: Sequence[list[int]], new: int, shared: int, first: Callable[[], None]) -> list[list[int]]:
        if len(prompts) > 1:
            return [tokens(said.content) for said in llm.batch([text(prompt) for prompt in prompts], max_tokens=new)]
        said = []
        for chunk in llm.stream(text(prompts[0]), max_tokens=new):
            first()
            said.append(chunk.content)
        return [tokens("".join(said))]

    return answer
