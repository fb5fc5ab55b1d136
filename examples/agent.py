"""An agent with two tools over a corpus: it searches, adds numbers, and answers, in a bounded number of steps.

    python examples/agent.py                          # a random model made on the spot: valid calls, no sense
    python examples/agent.py --model path/to/model    # a model trained on tools: answers
    python examples/agent.py --question "How many months of warranty have Spokevane and Fernwarden together?"

The agent is LangChain's `create_agent`. Its first turn must call a tool; after that the model chooses, and a call that
it opens is bound to the tools' schemas as well. The turn limit ends the run without an error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware, ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from pydantic import Field
from rag_qa import CORPUS, BM25Retriever, join, read_paragraphs
from tiny_model import model_or_tiny

from langchain_accel import ChatXeon

QUESTION = "How many months of warranty do the Spokevane and the Fernwarden have together?"
SYSTEM = "You answer questions about Pellowmere Instruments. Search its handbook; add numbers with the tool."


def make_tools() -> list[BaseTool]:
    """Return the tools; their signatures are the schemas that calls must follow."""
    retriever = BM25Retriever(documents=read_paragraphs(CORPUS), k=2)

    @tool
    def search_handbook(query: Annotated[str, Field(description="words to look for", max_length=80)]) -> str:
        """Find passages of the company's handbook."""
        return join(retriever.invoke(query))

    @tool
    def add_numbers(numbers: Annotated[list[float], Field(max_length=8)]) -> float:
        """Add numbers up."""
        return sum(numbers)

    return [search_handbook, add_numbers]


@wrap_model_call
def look_things_up_first(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """Make the model call one tool before it may answer."""
    if not any(isinstance(message, ToolMessage) for message in request.messages):
        request = request.override(tool_choice="any", model_settings={"parallel_tool_calls": False})
    return handler(request)


def show(messages: Sequence[BaseMessage]) -> None:
    """Print tool calls as JSON, their results shortened, and the answer."""
    for message in messages:
        if isinstance(message, ToolMessage):
            print(f"result: {message.status}, {len(message.text)} characters: {message.text[:60]!r}")
        elif isinstance(message, AIMessage):
            for call in message.tool_calls:
                print("call:", json.dumps({"name": call["name"], "args": call["args"]}, ensure_ascii=False))
            if message.text:
                print("answer:", " ".join(message.text.split()))


def main() -> None:
    """Run the agent on one question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder or hub id (default: a tiny random model made on the spot)")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--turns", type=int, default=4, help="most turns of the model (default: 4)")
    parser.add_argument("--max-tokens", type=int, default=128, help="longest turn in tokens (default: 128)")
    args = parser.parse_args()

    with model_or_tiny(args.model) as model:
        llm = ChatXeon(**model, rows=2, max_len=4096, max_tokens=args.max_tokens)
        limit = ModelCallLimitMiddleware(run_limit=args.turns, exit_behavior="end")
        agent = create_agent(llm, make_tools(), system_prompt=SYSTEM, middleware=[limit, look_things_up_first])
        asked: dict[str, Any] = {"messages": [("human", args.question)]}
        for update in agent.stream(asked, stream_mode="updates"):
            for state in update.values():
                show((state or {}).get("messages", []))
        llm.close()


if __name__ == "__main__":
    main()
