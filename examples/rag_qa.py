"""Retrieval question answering over a folder of documents, on the accelerator of your choice.

    python examples/rag_qa.py                          # the reader, a small model that comes with the package
    python examples/rag_qa.py --model path/to/model    # a model of yours
    python examples/rag_qa.py --question "How long is the battery under warranty?"

The chain is plain LCEL: retriever | prompt | model | parser. Swap `ChatXeon` for another class of this package and
nothing else changes.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

import bm25s
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from pydantic import PrivateAttr
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from langchain_accel import AccelChatModel, ChatXeon, embedded_reader

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
QUESTIONS = HERE / "questions.json"

PROMPT = ChatPromptTemplate.from_messages(
    [
        (
            "system",
            """You answer questions of customers and staff of Pellowmere Instruments. Use only the passages that are \
given. Quote numbers, codes and names exactly. If the passages do not hold the answer, say: I don't know.""",
        ),
        ("human", "Passages:\n{context}\n\nQuestion: {question}"),
    ]
)


def read_paragraphs(folder: Path) -> list[Document]:
    """Split every page into paragraphs that carry the page's title and file name."""
    documents = []
    for page in sorted(folder.glob("*.md")):
        title, *blocks = re.split(r"\n\s*\n", page.read_text(encoding="utf-8").strip())
        for block in blocks:
            if not block.startswith("#"):
                metadata = {"source": page.name, "title": title.lstrip("# ")}
                documents.append(Document(page_content=block.strip(), metadata=metadata))
    return documents


class BM25Retriever(BaseRetriever):
    """Lexical retrieval with the `bm25s` library: nothing to download, nothing to train."""

    documents: list[Document]
    k: int = 3
    _index: bm25s.BM25 = PrivateAttr()

    def model_post_init(self, context: object, /) -> None:
        """Index the documents."""
        super().model_post_init(context)
        self._index = bm25s.BM25()
        self._index.index(self._tokens([doc.page_content for doc in self.documents]), show_progress=False)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        del run_manager
        found, _ = self._index.retrieve(self._tokens([query]), k=self.k, show_progress=False)
        return [self.documents[index] for index in found[0]]

    @staticmethod
    def _tokens(texts: list[str]) -> bm25s.tokenization.Tokenized:
        return bm25s.tokenize(texts, stopwords="en", show_progress=False)


def join(documents: list[Document]) -> str:
    """Lay passages out for the prompt."""
    return "\n\n".join(f"[{doc.metadata['title']}] {doc.page_content}" for doc in documents)


def build_chain(retriever: BaseRetriever, llm: AccelChatModel) -> Runnable[str, str]:
    """Return the retrieval chain: question in, answer out."""
    return {"context": retriever | join, "question": RunnablePassthrough()} | PROMPT | llm | StrOutputParser()


def stream_one(console: Console, chain: Runnable[str, str], llm: AccelChatModel, question: str) -> None:
    """Print one answer as it is made, and what it took."""
    before = llm.stats()
    console.print(f"\n[bold]{question}[/bold]")
    began, first = time.perf_counter(), 0.0
    for piece in chain.stream(question):
        first = first or time.perf_counter() - began
        console.print(piece, end="", markup=False, highlight=False, style="cyan")
    took = time.perf_counter() - began
    after = llm.stats()
    tokens = after.output_tokens - before.output_tokens
    prompt = after.prompt_tokens - before.prompt_tokens
    reused = after.reused_tokens - before.reused_tokens
    console.print(
        f"\n  first token after {first * 1000:.0f} ms, {tokens} tokens at {(tokens - 1) / max(took - first, 1e-9):.0f} "
        f"tokens/s; {reused} of {prompt} prompt tokens reused from the KV cache",
        style="dim",
    )


def answer_all(console: Console, chain: Runnable[str, str], llm: AccelChatModel, retriever: BaseRetriever) -> None:
    """Answer the shipped questions as one batch and show what was retrieved and what was said."""
    questions = json.loads(QUESTIONS.read_text(encoding="utf-8"))["answerable"]
    before, began = llm.stats(), time.perf_counter()
    answers = chain.batch([item["question"] for item in questions])
    took, after = time.perf_counter() - began, llm.stats()
    table = Table(title="The shipped questions, as one batch", show_lines=False)
    for heading in ("question", "expected", "page found", "answer"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=44)
    for item, answer in zip(questions, answers, strict=True):
        found = any(doc.metadata["source"] == item["source"] for doc in retriever.invoke(item["question"]))
        table.add_row(item["question"], item["answer"], "yes" if found else "no", " ".join(answer.split()))
    console.print(table)
    right = sum(item["answer"].lower() in answer.lower() for item, answer in zip(questions, answers, strict=True))
    console.print(
        f"{right} of {len(questions)} answers hold the expected words. {took:.1f} s for {len(questions)} questions: "
        f"{after.prefill_steps - before.prefill_steps} prefill and {after.decode_steps - before.decode_steps} decode "
        f"steps, {after.output_tokens - before.output_tokens} tokens, "
        f"{after.reused_tokens - before.reused_tokens} of {after.prompt_tokens - before.prompt_tokens} prompt tokens "
        f"reused, {after.undeclared_shapes} undeclared shapes."
    )


def model_or_reader(model: str | None) -> dict[str, str]:
    """Return the fields `model` and `dtype` of a chat model: those of `model`, or of the reader of the package."""
    return {"model": embedded_reader(), "dtype": "float32"} if model is None else {"model": model, "dtype": "auto"}


def same_as_transformers(llm: AccelChatModel, folder: Path, prompt: str, tokens: int) -> bool:
    """Whether the model answers a prompt with the very tokens that transformers' own `generate` gives."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    plain = AutoModelForCausalLM.from_pretrained(folder).float()
    with torch.inference_mode():
        theirs = plain.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)
    expected = tokenizer.decode(theirs[0, ids.shape[1] :], skip_special_tokens=True)
    return llm.invoke(prompt, max_tokens=tokens).content == expected


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder or hub id (default: the reader that comes with the package)")
    parser.add_argument("--question", help="stream the answer to this question only")
    parser.add_argument("--max-tokens", type=int, default=128, help="longest answer (default: 128)")
    args = parser.parse_args()
    console = Console()
    disable_progress_bar()

    retriever = BM25Retriever(documents=read_paragraphs(CORPUS))
    console.print(f"{len(retriever.documents)} paragraphs of {len(list(CORPUS.glob('*.md')))} pages indexed with BM25.")
    if args.model is None:
        console.print(
            "[yellow]No --model given: the reader answers, which comes with the package.[/yellow] It has 6 million "
            "parameters, quotes the sentence that it takes for the answer, and is sometimes wrong."
        )
    llm = ChatXeon(rows=8, max_len=2048, max_tokens=args.max_tokens, **model_or_reader(args.model))
    began = time.perf_counter()
    llm.load()
    console.print(f"Loaded and warmed up {llm.stats().shapes} shapes in {time.perf_counter() - began:.1f} s.")
    chain = build_chain(retriever, llm)
    question = args.question or json.loads(QUESTIONS.read_text(encoding="utf-8"))["answerable"][0]["question"]
    stream_one(console, chain, llm, question)
    if args.question is None:
        stream_one(console, chain, llm, "What does a monthly parking permit for a car cost at the Low Hatch works?")
        answer_all(console, chain, llm, retriever)
    if args.model is None:
        same = same_as_transformers(llm, Path(embedded_reader()), question, 32)
        console.print(f"Same 32 greedy tokens as transformers' own generate(): {'yes' if same else 'NO'}.")
    llm.close()


if __name__ == "__main__":
    main()
