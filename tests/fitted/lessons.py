"""What the fitted fixture model knows by heart: prompts of LangChain's integration suite, each with its answer.

Messages and tools are those that `langchain_tests` sends. Answers which a test checks by value, or which need the model
to choose a call by itself, must be known; short answers to the rest keep the suite fast and its texts readable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tests.integration_tests.chat_models import magic_function, magic_function_no_args, unicode_customer

from langchain_accel._messages import to_template

Render = Callable[[list[dict[str, Any]], Sequence[dict[str, Any]]], str]


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return "It's sunny."


@tool
def my_adder_tool(a: int, b: int) -> int:
    """Tool that adds two integers.

    Takes two integers, a and b, and returns their sum.
    """
    return a + b


@dataclass(frozen=True)
class Lesson:
    """One prompt and the answer to it.

    Attributes:
        needed_by: the tests that would fail without it; empty where it only keeps an answer short.
        messages: the conversation so far.
        answer: what the model writes, its end of turn left out.
        tools: bound to the model.
    """

    needed_by: str
    messages: tuple[BaseMessage, ...]
    answer: str
    tools: tuple[BaseTool, ...] = ()

    def prompt(self, render: Render) -> str:
        """Return the prompt as `ChatXeon` renders it."""
        return render(to_template(self.messages), [convert_to_openai_tool(each) for each in self.tools])


def call(name: str, **arguments: Any) -> str:
    """Return a tool call in the Hermes format."""
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"


def _called(name: str, arguments: dict[str, Any], content: str = "") -> AIMessage:
    return AIMessage(content, tool_calls=[{"name": name, "args": arguments, "id": "abc123", "type": "tool_call"}])


def _result(name: str, content: str) -> ToolMessage:
    return ToolMessage(content, name=name, tool_call_id="abc123")


_WEATHER = HumanMessage("What is the weather in San Francisco, CA?")
_SUM = HumanMessage("What is 1 + 2")
_THREE = _result("my_adder_tool", json.dumps({"result": 3}))

LESSONS = (
    Lesson(
        "test_tool_calling, test_tool_calling_async",
        (HumanMessage("What is the value of magic_function(3)? Use the tool."),),
        call("magic_function", input=3),
        (magic_function,),
    ),
    Lesson(
        "test_tool_calling_with_no_arguments",
        (HumanMessage("What is the value of magic_function_no_args()? Use the tool."),),
        call("magic_function_no_args"),
        (magic_function_no_args,),
    ),
    Lesson(
        "test_unicode_tool_call_integration",
        (HumanMessage("Create a customer named '你好啊集团' (Hello Group) - a Chinese technology company"),),
        call("unicode_customer", customer_name="你好啊集团", description="Chinese technology company"),
        (unicode_customer,),
    ),
    Lesson(
        "test_unicode_tool_call_integration",
        (HumanMessage("Create a customer named 'こんにちは株式会社' (Hello Corporation) - a Japanese company"),),
        call("unicode_customer", customer_name="こんにちは株式会社", description="Japanese company"),
        (unicode_customer,),
    ),
    Lesson("test_agent_loop", (_WEATHER,), call("get_weather", location="San Francisco, CA"), (get_weather,)),
    Lesson(
        "test_json_mode",
        (
            HumanMessage(
                "Tell me a joke about cats. Return the result as a JSON with 'setup' and "
                "'punchline' keys. Return nothing other than JSON."
            ),
        ),
        '{"setup": "Why do cats purr?", "punchline": "The motor is still running."}',
    ),
    Lesson(
        "",
        (_WEATHER, _called("get_weather", {"location": "San Francisco, CA"}), _result("get_weather", "It's sunny.")),
        "It's sunny in San Francisco.",
        (get_weather,),
    ),
    Lesson("", (_SUM, _called("my_adder_tool", {"a": 1, "b": 2}), _THREE), "1 + 2 is 3.", (my_adder_tool,)),
    Lesson(
        "", (_SUM, _called("my_adder_tool", {"a": 1, "b": 2}, "some text"), _THREE), "1 + 2 is 3.", (my_adder_tool,)
    ),
    Lesson(
        "",
        (
            _SUM,
            _called("my_adder_tool", {"a": 1}),
            _result("my_adder_tool", "Error: Missing required argument 'b'."),
        ),
        call("my_adder_tool", a=1, b=2),
        (my_adder_tool,),
    ),
    Lesson("", (HumanMessage("Hello"),), "Hello! How can I help you today?"),
    Lesson("", (HumanMessage("Hey"),), "Hey! What can I do for you?"),
    Lesson("", (HumanMessage("hi"),), "Hi! How are you today?"),
    Lesson("", (HumanMessage("hello", name="example_user"),), "Hello! It is good to see you."),
    Lesson("", (HumanMessage("hello"), AIMessage("hello"), HumanMessage("how are you")), "I am fine, thank you."),
    Lesson(
        "",
        (
            *(SystemMessage("hello"), SystemMessage("hello"), HumanMessage("hello"), HumanMessage("hello")),
            *(AIMessage("hello"), AIMessage("hello"), HumanMessage("how are you")),
        ),
        "I am very well, thank you.",
    ),
    Lesson(
        "",
        (HumanMessage("Write me 2 haikus. Only include the haikus."),),
        "Rain on the tin roof,\na row of keys and values,\nthe night is patient.\n\n"
        "One token at a time,\nthe small model counts its words,\nfive, seven and five.",
    ),
)
