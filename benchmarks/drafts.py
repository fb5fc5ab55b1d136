"""What drafts by prompt lookup save, and what they cost where nothing is quoted, in one interleaved run.

    python benchmarks/drafts.py [--quoting FOLDER] [--repeats 5] [--threads 1]

*quoting*, with a model that answers in the words of its passages: the shipped questions over the pages of the
examples, one after the other, and all at once. *inventing*: the same prompts, sampled from a random-weight model at
temperature 1, so that no draft is ever right. Each is answered with and without drafts in turn; CPU time of the whole
process is the figure to trust on a shared machine. Only the time from the first token on is compared: the prefill is
the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from rag_qa import CORPUS, PROMPT, QUESTIONS, BM25Retriever, join, read_paragraphs
from tiny_model import make_tiny_model

from langchain_accel import ChatXeon, XeonOptions, embedded_reader


def prompts() -> list[list[object]]:
    """The messages that the demo's chain sends."""
    retriever = BM25Retriever(documents=read_paragraphs(CORPUS))
    questions = [item["question"] for item in json.loads(QUESTIONS.read_text(encoding="utf-8"))["answerable"]]
    return [
        PROMPT.invoke({"context": join(retriever.invoke(question)), "question": question}).to_messages()
        for question in questions
    ]


def one_by_one(llm: ChatXeon, asked: list[list[object]], **how: object) -> list[object]:
    """Answer one prompt after the other."""
    return [llm.invoke(each, **how) for each in asked]


def measure(llm: ChatXeon, ask: Callable[..., object], *, drafts: bool) -> tuple[float, float, float]:
    """CPU seconds and wall seconds of decoding, and tokens per decode step."""
    ask(prompt_lookup=drafts, max_tokens=1)  # the prompts' keys and values now stand in their rows
    before, cpu, wall = llm.stats(), time.process_time(), time.perf_counter()
    ask(prompt_lookup=drafts)
    after = llm.stats()
    steps = after.decode_steps - before.decode_steps
    return time.process_time() - cpu, time.perf_counter() - wall, (after.output_tokens - before.output_tokens) / steps


def compare(name: str, llm: ChatXeon, ask: Callable[..., object], repeats: int) -> None:
    """Print one line: medians with drafts and without."""
    runs = {True: [], False: []}
    for repeat in range(repeats + 1):
        for drafts in (True, False):
            figures = measure(llm, ask, drafts=drafts)
            if repeat:
                runs[drafts].append(figures)
    (cpu, wall, per_step), (plain_cpu, plain_wall, _) = (
        [statistics.median(column) for column in zip(*runs[drafts], strict=True)] for drafts in (True, False)
    )
    print(
        f"{name:28} {cpu:8.2f} {plain_cpu:8.2f} {plain_cpu / cpu:7.2f}x {wall:8.2f} {plain_wall:8.2f} "
        f"{plain_wall / wall:7.2f}x {per_step:8.2f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quoting", default=embedded_reader(), help="a model that quotes (default: the reader)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    disable_progress_bar()
    asked = prompts()
    fields = {"max_len": 2048, "dtype": "float32", "options": XeonOptions(threads=args.threads)}
    print(f"{'':28} {'CPU s':>8} {'without':>8} {'':>8} {'wall s':>8} {'without':>8} {'':>8} {'tok/step':>8}")
    with closing(ChatXeon(model=args.quoting, rows=16, max_tokens=128, **fields)) as llm:
        compare("quoting, one at a time", llm, partial(one_by_one, llm, asked), args.repeats)
        compare("quoting, ten at once", llm, partial(llm.batch, asked), args.repeats)
    with tempfile.TemporaryDirectory() as scratch:
        tiny = str(make_tiny_model(Path(scratch) / "tiny", CORPUS))
        sampled = {"temperature": 1.0, "seed": 1, "max_tokens": 128, "ignore_eos": True}
        with closing(ChatXeon(model=tiny, rows=16, **sampled, **fields)) as llm:
            compare("inventing, one at a time", llm, partial(one_by_one, llm, asked), args.repeats)
            compare("inventing, ten at once", llm, partial(llm.batch, asked), args.repeats)


if __name__ == "__main__":
    main()
