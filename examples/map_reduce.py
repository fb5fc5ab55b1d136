"""Summarize a corpus by map and reduce: one summary per page, all pages as one batch, then one summary of summaries.

    python examples/map_reduce.py                          # a random model made on the spot: shows the steps
    python examples/map_reduce.py --model path/to/model    # a real model: a summary

A decode step reads all weights, whether for one answer or for eight: a batch takes about as many steps as its longest
answer. The numbers printed at the end are the device's own counters.
"""

from __future__ import annotations

import argparse

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from rag_qa import CORPUS
from tiny_model import model_or_tiny

from langchain_accel import AccelChatModel, ChatXeon
from langchain_accel.runtime.stats import Stats

SYSTEM = ("system", "You summarize documents of Pellowmere Instruments in plain sentences. Keep numbers and names.")
MAP = ChatPromptTemplate.from_messages([SYSTEM, ("human", "Summarize this page in two sentences.\n\n{text}")])
REDUCE = ChatPromptTemplate.from_messages([SYSTEM, ("human", "Summarize these summaries in a paragraph.\n\n{text}")])


def groups(llm: AccelChatModel, summaries: list[str]) -> list[str]:
    """Join summaries into as few texts as fit the window, each with room for its answer."""
    room = llm.max_len - (llm.max_tokens or 0) - llm.get_num_tokens_from_messages(REDUCE.format_messages(text=""))
    texts = [summaries[0]]
    for summary in summaries[1:]:
        longer = f"{texts[-1]}\n\n{summary}"
        if llm.get_num_tokens(longer) <= room:
            texts[-1] = longer
        else:
            texts.append(summary)
    return texts


def report(what: str, before: Stats, after: Stats) -> None:
    """Print the steps of a stage beside those that its answers would take one after the other."""
    answers = after.finished - before.finished
    steps = after.prefill_steps - before.prefill_steps + after.decode_steps - before.decode_steps
    tokens = after.output_tokens - before.output_tokens
    # Alone, an answer takes at least a prefill step for its first token and a decode step for every further one.
    print(f"{what}: {answers} answers, {tokens} tokens, {steps} device steps; one after the other at least {tokens}.")


def main() -> None:
    """Summarize some pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder or hub id (default: a tiny random model made on the spot)")
    parser.add_argument("--pages", type=int, default=6, help="pages to summarize, at most 20 (default: 6)")
    parser.add_argument("--max-tokens", type=int, default=48, help="longest summary (default: 48)")
    args = parser.parse_args()

    pages = [page.read_text(encoding="utf-8") for page in sorted(CORPUS.glob("*.md"))[: args.pages]]
    with model_or_tiny(args.model) as model:
        llm = ChatXeon(**model, rows=8, max_len=2048, max_tokens=args.max_tokens).load()
        before = llm.stats()
        summaries = (MAP | llm | StrOutputParser()).batch([{"text": page} for page in pages])
        report("map", before, llm.stats())
        while True:
            texts, before = groups(llm, summaries), llm.stats()
            fewer = (REDUCE | llm | StrOutputParser()).batch([{"text": text} for text in texts])
            report("reduce", before, llm.stats())
            if len(texts) == 1:
                break
            summaries = fewer
        print(f"\n{fewer[0]}")
        llm.close()


if __name__ == "__main__":
    main()
