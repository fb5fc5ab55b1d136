"""Score a reader on what it has never seen, through `ChatXeon`.

    python tools/reader/evaluate.py FOLDER [--share 0.1] [--json scores.json]

Every invented name, number, code, noun, verb, adjective and phrasing of these questions is kept from training.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from langchain_accel import ChatXeon
from tools.reader.reading import Conversation, Reading, Size
from tools.reader.tokens import tool_prompt
from tools.reader.toolcalls import ToolCalls

SEED = 2026


@dataclass(frozen=True)
class Task:
    """One part of the evaluation: conversations of which the last answer is asked.

    Attributes:
        name: what the table calls it.
        conversations: what is asked.
        bound: hand the tools to `bind_tools`, so that a grammar binds the call; else they stand in the prompt only.
    """

    name: str
    conversations: list[Conversation]
    bound: bool = False


def tasks(share: float = 1.0) -> list[Task]:
    """The evaluation, or the first `share` of each part; the same questions every time."""

    def reading(count: int, size: Size, unanswerable: float = 0.0, distractors: int = 0) -> list[Conversation]:
        source = Reading(random.Random(SEED), evaluation=True)
        options = {"unanswerable": unanswerable, "distractors": distractors}
        return [source.conversation(size, **options) for _ in range(round(count * share))]

    def calling(count: int, kind: str) -> list[Conversation]:
        source = ToolCalls(random.Random(SEED), evaluation=True)
        found: list[Conversation] = []
        while len(found) < round(count * share):
            if kind == "extraction":
                found.append(source.extraction())
                continue
            made = source.conversation(fitting=0.0 if kind == "no tool" else 1.0)
            last = made.turns[-1][1]
            if (
                (kind == "result" and made.turns[-2][0] == "tool")
                or kind == "no tool"
                or (kind == "call" and last.startswith("<tool_call>") and made.turns[-3:-2] != [("assistant", last)])
            ):
                found.append(made)
        return found

    one = Size((1, 1), (3, 6), (1, 1))
    calls = calling(200, "call")
    return [
        Task("extractive, one passage", reading(500, one)),
        Task("extractive, five distractor passages", reading(500, one, distractors=5)),
        Task("extractive, follow-up question", reading(100, Size((1, 2), (3, 6), (2, 3)))),
        Task("unanswerable", reading(200, Size((1, 3), (3, 6), (1, 1)), unanswerable=1.0)),
        Task("tool call, unconstrained", calls),
        Task("tool call, bound by a grammar", calls, bound=True),
        Task("no tool fits", calling(100, "no tool")),
        Task("answer from a tool's result", calling(100, "result")),
        Task("JSON by keys", calling(100, "extraction")),
    ]


@dataclass(frozen=True)
class Score:
    """Right answers of a task."""

    task: str
    asked: int
    right: int

    @property
    def percent(self) -> float:
        """Share of right answers, of 100."""
        return 100 * self.right / max(self.asked, 1)


def score(llm: ChatXeon, task: Task) -> tuple[Score, list[tuple[str, str, str]]]:
    """Ask a task's questions; also returns what went wrong as (asked, expected, answered)."""
    prompts = [messages(conversation, in_prompt=not task.bound) for conversation in task.conversations]
    if task.bound:
        answers = []
        for conversation, prompt in zip(task.conversations, prompts, strict=True):
            answers.append(llm.bind_tools(conversation.tools).invoke(prompt))
    else:
        answers = llm.batch(prompts)
    wrong = []
    for conversation, answer in zip(task.conversations, answers, strict=True):
        expected = conversation.turns[-1][1]
        if written(answer) != normal(expected):
            wrong.append((conversation.turns[-2][1], expected, str(written(answer))))
    return Score(task.name, len(prompts), len(prompts) - len(wrong)), wrong


def messages(conversation: Conversation, *, in_prompt: bool) -> list[BaseMessage]:
    """A conversation up to its last answer as LangChain's messages.

    Args:
        conversation: whose last turn is left out.
        in_prompt: write the tools into the system message, word for word as the template would, and bind nothing.
    """
    turns = conversation.turns[:-1]
    system = turns[0][1] if turns[0][0] == "system" else ""
    found: list[BaseMessage] = []
    if conversation.tools and in_prompt:
        system = (system + "\n\n" if system else "") + tool_prompt(conversation.tools)
    if system:
        found.append(SystemMessage(system))
    for role, text in turns:
        if role == "user":
            found.append(HumanMessage(text))
        elif role == "assistant" and text.startswith("<tool_call>"):
            call = normal(text)
            assert isinstance(call, dict)
            found.append(AIMessage("", tool_calls=[{"name": call["name"], "args": call["arguments"], "id": "call"}]))
        elif role == "assistant":
            found.append(AIMessage(text))
        elif role == "tool":
            found.append(ToolMessage(text, tool_call_id="call"))
    return found


def written(answer: AIMessage) -> object:
    """What was answered: a call as its parsed JSON, else the text."""
    if answer.tool_calls:
        return {"name": answer.tool_calls[0]["name"], "arguments": answer.tool_calls[0]["args"]}
    return normal(str(answer.content))


def normal(text: str) -> object:
    """JSON, in a call or bare, parsed; any other text without outer space."""
    bare = text.strip().removeprefix("<tool_call>").removesuffix("</tool_call>").strip()
    if bare.startswith("{"):
        try:
            return json.loads(bare)
        except ValueError:
            return bare
    return bare


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="share of each part to ask (default: all)")
    parser.add_argument("--json", type=Path, help="also write the scores here")
    parser.add_argument("--wrong", type=int, default=0, help="show so many wrong answers of each part")
    args = parser.parse_args()
    scores = []
    with closing(ChatXeon(model=str(args.folder), rows=8, max_len=2048, max_tokens=256, dtype="float32")) as llm:
        for task in tasks(args.share):
            result, wrong = score(llm, task)
            scores.append(result)
            print(f"{result.task:40} {result.right:4} of {result.asked:4}  {result.percent:5.1f} %", flush=True)
            for asked, expected, answered in wrong[: args.wrong]:
                print(f"    asked    {asked[-160:]!r}\n    expected {expected!r}\n    answered {answered!r}")
    if args.json:
        args.json.write_text(
            json.dumps([{**asdict(one), "percent": round(one.percent, 1)} for one in scores], indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
