"""Retrieval question answering that returns its sources: one chain, the answer and the pages it was given.

    python examples/rag_with_sources.py                          # the reader, a small model of the package
    python examples/rag_with_sources.py --model path/to/model    # a model of yours
    python examples/rag_with_sources.py --question "How long is the battery under warranty?"

Retrieval runs once per question; its documents go into the prompt and, beside the answer, into the result. Several
questions are one batch, printed as JSON lines. One question is streamed: its sources come before its first word.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableParallel, RunnablePassthrough
from rag_qa import CORPUS, PROMPT, QUESTIONS, BM25Retriever, join, model_or_reader, read_paragraphs

from langchain_accel import AccelChatModel, ChatXeon


def sources(documents: list[Document]) -> list[dict[str, str]]:
    """Return file name and title of the documents' pages, each once, the best first."""
    return list({doc.metadata["source"]: doc.metadata for doc in documents}.values())


def build_chain(retriever: BaseRetriever, llm: AccelChatModel) -> Runnable[str, dict[str, Any]]:
    """Return the chain: question in; question, sources and answer out."""
    answer = PROMPT | llm | StrOutputParser()
    return (
        RunnableParallel(question=RunnablePassthrough(), documents=retriever)
        .assign(sources=lambda state: sources(state["documents"]), context=lambda state: join(state["documents"]))
        .assign(answer=answer)
        .pick(["question", "sources", "answer"])
    )


def stream_one(chain: Runnable[str, dict[str, Any]], question: str) -> None:
    """Print the sources as soon as they are found, then the answer as it is made."""
    for piece in chain.stream(question):
        for source in piece.get("sources", []):
            print(f"[{source['source']}] {source['title']}")
        print(piece.get("answer", ""), end="", flush=True)
    print()


def main() -> None:
    """Answer one question, or the first of the shipped ones as a batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder or hub id (default: the reader that comes with the package)")
    parser.add_argument("--question", help="stream the answer to this question only")
    parser.add_argument("--questions", type=int, default=4, help="shipped questions to answer (default: 4)")
    parser.add_argument("--max-tokens", type=int, default=128, help="longest answer (default: 128)")
    args = parser.parse_args()

    retriever = BM25Retriever(documents=read_paragraphs(CORPUS))
    llm = ChatXeon(rows=4, max_len=2048, max_tokens=args.max_tokens, **model_or_reader(args.model))
    chain = build_chain(retriever, llm)
    if args.question:
        stream_one(chain, args.question)
    else:
        shipped = json.loads(QUESTIONS.read_text(encoding="utf-8"))["answerable"][: args.questions]
        for answered in chain.batch([item["question"] for item in shipped]):
            print(json.dumps(answered, ensure_ascii=False))
    llm.close()


if __name__ == "__main__":
    main()
