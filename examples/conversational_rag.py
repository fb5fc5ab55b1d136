"""A chat over a corpus that remembers what was said, as much of it as the model's window holds.

    python examples/conversational_rag.py --model path/to/model             # type questions, an empty line ends
    python examples/conversational_rag.py --script                          # asks the shipped questions itself
    python examples/conversational_rag.py --script "How long is the warranty?" "And that of the battery?"

Without --model a random model is made on the spot: its words mean nothing, its counts are real. Each turn asks twice:
once to make the question stand alone, once to answer it from what was retrieved. Both prompts begin with the history,
so the second finds it in the KV cache. History over its budget is cut to half of it, oldest first, so that the prompts
of the next turns begin alike again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, trim_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.retrievers import BaseRetriever
from rag_qa import CORPUS, BM25Retriever, join, read_paragraphs
from tiny_model import model_or_tiny

from langchain_accel import AccelChatModel, ChatXeon

SCRIPT = (
    "How long is the Spokevane battery pack under warranty?",
    "And the one of the Fernwarden?",
    "What does the warranty not cover?",
    "How is a product returned?",
    "Who pays for shipping then?",
    "How long does that take?",
)
SYSTEM = ("system", "You answer questions about Pellowmere Instruments from the passages given. If in doubt, say so.")
HISTORY = MessagesPlaceholder("history")
CONDENSE = ChatPromptTemplate.from_messages(
    [SYSTEM, HISTORY, ("human", "Rewrite this as a question that stands alone, and nothing else: {question}")]
)
ANSWER = ChatPromptTemplate.from_messages([SYSTEM, HISTORY, ("human", "Passages:\n{context}\n\nQuestion: {question}")])


class Chat:
    """One conversation.

    Args:
        llm: answers.
        retriever: finds passages.
        budget: tokens of history, counted by the model's own tokenizer and template; what is left of the window is for
            passages, question and answer.
    """

    def __init__(self, llm: AccelChatModel, retriever: BaseRetriever, budget: int) -> None:
        self.llm, self.retriever, self.budget = llm, retriever, budget
        self.history: list[BaseMessage] = []
        self._condense = CONDENSE | llm.bind(max_tokens=24, stop=["\n"]) | StrOutputParser()

    def ask(self, question: str) -> str:
        """Answer one question and print what the turn took."""
        said = {"history": self.history, "question": question}
        alone = self._condense.invoke(said) if self.history else question
        passages = self.retriever.invoke(alone or question)
        answer = (ANSWER | self.llm).invoke({**said, "context": join(passages)})
        usage = answer.usage_metadata
        print(
            f"[{len(self.history)} messages of history, {self._tokens()} of {self.budget} tokens; prompt of "
            f"{usage['input_tokens']} tokens in a window of {self.llm.max_len}, "
            f"{usage['input_token_details']['cache_read']} reused]"
        )
        self.history += [HumanMessage(question), AIMessage(answer.text)]
        if self._tokens() > self.budget:
            self.history = trim_messages(
                self.history, max_tokens=self.budget // 2, token_counter=self.llm, strategy="last", start_on="human"
            )
        return answer.text

    def _tokens(self) -> int:
        return self.llm.get_num_tokens_from_messages(self.history) if self.history else 0


def typed() -> Iterator[str]:
    """Yield what the user types, up to an empty line or the end."""
    try:
        while question := input("? ").strip():
            yield question
    except EOFError:
        return


def main() -> None:
    """Chat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder or hub id (default: a tiny random model made on the spot)")
    parser.add_argument("--script", nargs="*", metavar="QUESTION", help="ask these (default: the shipped ones)")
    parser.add_argument("--window", type=int, default=1024, help="tokens of a prompt and its answer (default: 1024)")
    parser.add_argument("--max-tokens", type=int, default=48, help="longest answer (default: 48)")
    args = parser.parse_args()

    retriever = BM25Retriever(documents=read_paragraphs(CORPUS))
    with model_or_tiny(args.model) as model:
        llm = ChatXeon(**model, rows=4, max_len=args.window, max_tokens=args.max_tokens)
        chat = Chat(llm, retriever, budget=args.window // 3)
        for question in typed() if args.script is None else args.script or SCRIPT:
            if args.script is not None:
                print(f"? {question}")
            print(chat.ask(question))
        llm.close()


if __name__ == "__main__":
    main()
