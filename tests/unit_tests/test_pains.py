"""What users of local models have asked LangChain for, again and again; `docs/pains.md` lists all of it.

Here are the tests of those pains that no other test names.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.runnables import RunnableParallel
from langchain_core.tools import tool

from langchain_accel.devices import reference
from tests.reference_models import ChatReference, ReferenceLLM
from tests.unit_tests.devices_for_tests import Gate


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture(scope="module")
def chat(tiny: Path) -> Iterator[ChatReference]:
    model = ChatReference(model=str(tiny), rows=8, max_len=512, max_tokens=12)
    yield model.load()
    assert model.stats().running == model.stats().queued == 0
    model.close()


def steps(model: ChatReference) -> int:
    return model.stats().prefill_steps + model.stats().decode_steps


def test_the_prompt_is_not_echoed(chat: ChatReference, tiny: Path) -> None:
    """Nor are the template's markers. Mutant seen to fail: the prompt put before the answer."""
    prompt = "What is the weather in Paris today?"
    llm = ReferenceLLM(model=str(tiny), rows=8, max_len=512, max_tokens=12)
    for text in (
        llm.invoke(prompt),
        llm.generate([prompt]).generations[0][0].text,
        "".join(llm.stream(prompt)),
        chat.invoke(prompt).text,
        "".join(chunk.text for chunk in chat.stream(prompt)),
    ):
        assert prompt not in text
        assert "<|im_start|>" not in text
        assert text


def test_a_stop_string_that_is_no_token_ends_invoke_and_stream_alike(chat: ChatReference, tiny: Path) -> None:
    """Peers compare token ids, or only look when streaming. Mutant seen to fail: `stop` dropped."""
    llm = ReferenceLLM(model=str(tiny), rows=8, max_len=512, max_tokens=12)
    for ask, stream in (
        (lambda **k: chat.invoke("hi", **k).text, lambda **k: "".join(c.text for c in chat.stream("hi", **k))),
        (lambda **k: llm.invoke("hi", **k), lambda **k: "".join(llm.stream("hi", **k))),
    ):
        whole = ask()
        stop = whole[1:6]
        assert len(llm.get_token_ids(stop)) > 1
        assert ask(stop=[stop]) == stream(stop=[stop]) == whole[: whole.index(stop)]


def test_a_stream_comes_while_the_device_still_works(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device waits at a gate, and the first piece is there. Mutant seen to fail: one piece when all is done."""
    gates: list[Gate] = []
    load = reference.load
    monkeypatch.setattr(reference, "load", lambda *args: gates.append(Gate(load(*args))) or gates[-1])
    model = ChatReference(model=str(tiny), rows=2, max_len=256).load()
    (gate,), arrived = gates, threading.Event()

    def let_some_pass() -> None:
        while not arrived.wait(0.05):
            gate.let_one_pass()

    gate.shut()
    before = steps(model)
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(let_some_pass)
        stream = model.stream("Tell me a story", max_tokens=160, ignore_eos=True, prompt_lookup=False)
        next(stream)
        early = steps(model) - before
        arrived.set()
        leader.result()
    gate.open()
    assert len(list(stream)) > 2
    assert early < 150 < steps(model) - before
    model.close()


def in_threads(chat: BaseChatModel, questions: list[str]) -> list[BaseMessage]:
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(chat.invoke, questions))


def in_tasks(chat: BaseChatModel, questions: list[str]) -> list[BaseMessage]:
    async def all_of_them() -> list[BaseMessage]:
        return await asyncio.gather(*map(chat.ainvoke, questions))

    return asyncio.run(all_of_them())


def generated(chat: BaseChatModel, questions: list[str]) -> list[BaseMessage]:
    result = chat.generate([[HumanMessage(question)] for question in questions])
    return [generations[0].message for generations in result.generations]


def in_parallel(chat: BaseChatModel, questions: list[str]) -> list[BaseMessage]:
    branches = {str(index): (lambda _, q=question: q) | chat for index, question in enumerate(questions)}
    return list(RunnableParallel(branches).invoke("", config={"max_concurrency": len(questions)}).values())


@pytest.mark.parametrize("ask", [in_threads, in_tasks, generated, in_parallel], ids=lambda ask: ask.__name__)
def test_every_way_to_ask_at_once_is_a_batch(
    chat: ChatReference, ask: Callable[[BaseChatModel, list[str]], list[BaseMessage]]
) -> None:
    """Eight questions take at most half the steps they take one after the other, and get the same answers.

    Mutant seen to fail: a lock around each answer.
    """
    eager = chat.model_copy(update={"ignore_eos": True})
    questions = [f"Question {index} of {ask.__name__}?" for index in range(8)]
    before = steps(chat)
    alone = [eager.invoke(question).text for question in questions]
    sequential, before = steps(chat) - before, steps(chat)
    assert [message.text for message in ask(eager, questions)] == alone
    assert (steps(chat) - before) * 2 <= sequential


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is not defined or enable_thinking %}one two three four{% endif %}"
)


def test_template_arguments_reach_the_template(chat: ChatReference) -> None:
    """As a field and as a keyword. Mutant seen to fail: `chat_template_kwargs` of the call dropped."""
    thinks = chat.model_copy(update={"chat_template": THINKING})
    not_ = thinks.model_copy(update={"chat_template_kwargs": {"enable_thinking": False}})

    def taken(model: ChatReference, **kwargs: Any) -> int:
        return model.invoke("hi", max_tokens=1, **kwargs).usage_metadata["input_tokens"]

    assert taken(not_) < taken(thinks)
    assert taken(thinks, chat_template_kwargs={"enable_thinking": False}) == taken(not_)
    assert taken(not_, chat_template_kwargs={"enable_thinking": True}) == taken(thinks)


def test_a_local_folder_needs_no_hub_and_no_token(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing looks up a host, although nobody says that this is offline. Mutant seen to fail: `local_files_only` gone
    and the folder given as a hub id.
    """
    import huggingface_hub.constants

    asked: list[object] = []

    def noted(*args: object, **kwargs: object) -> None:
        asked.append(args)
        msg = "no network"
        raise OSError(msg)

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", noted)
    model = ChatReference(model=str(tiny), rows=1, max_len=64, max_tokens=2)
    assert model.invoke("hi").usage_metadata["output_tokens"] > 0
    model.get_num_tokens("hi")
    model.close()
    assert not asked


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_memory_is_released(tiny: Path, how: str) -> None:
    """Engine and thread go with their last user. Mutant seen to fail: a lease that is never given back."""
    threads = threading.active_count()
    model = ChatReference(model=str(tiny), rows=3, max_len=64, max_tokens=2)
    chain = model.bind(stop=["x"]) | (lambda message: message.text)
    chain.invoke("hi")
    engine = weakref.ref(model._engine_lease().engine)
    assert threading.active_count() > threads
    if how == "closed":
        model.close()
    else:
        del model
    del chain
    gc.collect()
    waiting = threading.Event()
    for _ in range(500):
        if engine() is None and threading.active_count() <= threads:
            break
        gc.collect()
        waiting.wait(0.02)
    assert engine() is None
    assert threading.active_count() <= threads


def test_a_history_can_be_trimmed_to_the_window(chat: ChatReference) -> None:
    """With the model's own count: what is trimmed to the last token is served. Mutant seen to fail: the template's
    tokens not counted.
    """
    turns = [HumanMessage("Tell me more."), AIMessage("Here is more about the sea.")] * 40
    most = chat.profile["max_input_tokens"]
    assert chat.get_num_tokens_from_messages(turns) > most
    fits = trim_messages(turns, max_tokens=most, token_counter=chat, strategy="last", start_on="human")
    assert most - 40 < chat.get_num_tokens_from_messages(fits) <= most
    assert chat.invoke(fits, max_tokens=1).usage_metadata["input_tokens"] == chat.get_num_tokens_from_messages(fits)


@pytest.mark.parametrize(
    "history",
    [
        [SystemMessage("Be brief.")],
        [HumanMessage("hi"), AIMessage("hello")],
        [HumanMessage("hi"), HumanMessage("there")],
        [AIMessage("hello"), HumanMessage("hi")],
        [
            HumanMessage("1 + 1?"),
            AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 1}, "id": "c1"}]),
            ToolMessage("2", tool_call_id="c1"),
        ],
        [
            HumanMessage([{"type": "text", "text": "hi"}]),
            ToolMessage([{"type": "text", "text": "2"}], tool_call_id="c"),
        ],
    ],
    ids=["system only", "answer last", "human twice", "answer first", "tool result last", "blocks"],
)
def test_no_rule_but_the_templates_own_says_which_message_comes_last(
    chat: ChatReference, history: list[BaseMessage]
) -> None:
    assert chat.bind_tools([add]).invoke(history, max_tokens=2).usage_metadata["output_tokens"] > 0


def test_a_cache_never_gives_another_models_or_settings_answer(chat: ChatReference) -> None:
    """Mutant seen to fail: no `_identifying_params`."""
    cache = InMemoryCache()
    models = [
        chat.model_copy(update={"cache": cache, **update})
        for update in (
            {},
            {"max_tokens": 5},
            {"temperature": 2.0, "seed": 1},
            {"chat_template": THINKING},
            {"stop": ["e"]},
        )
    ]
    fresh = [model.model_copy(update={"cache": None}).invoke("Tell me!").text for model in models]
    assert len(set(fresh)) >= 4
    for _ in range(2):
        assert [model.invoke("Tell me!").text for model in models] == fresh
    before = chat.stats().finished
    assert models[0].invoke("Tell me!").text == fresh[0]
    assert chat.stats().finished == before, "the second time the answer comes from the cache"


async def test_an_agent_runs_in_an_event_loop_and_calls_a_tool(chat: ChatReference) -> None:
    """`tool_choice="any"` with two tools, async, then the tool's result as the last message."""
    agents = pytest.importorskip("langchain.agents")
    from langchain.agents.middleware import wrap_model_call

    @tool
    def today() -> str:
        """Say the date."""
        return "a Monday"

    @wrap_model_call
    async def force_once(request: Any, handler: Any) -> Any:
        if not any(isinstance(message, ToolMessage) for message in request.messages):
            request = request.override(tool_choice="any", model_settings={"parallel_tool_calls": False})
        return await handler(request)

    model = chat.model_copy(update={"max_tokens": 48})
    agent = agents.create_agent(model, [add, today], middleware=[force_once])
    results = await asyncio.gather(*(agent.ainvoke({"messages": [("human", f"{n}?")]}) for n in range(3)))
    for result in results:
        _, call, told, answer = result["messages"]
        assert call.tool_calls[0]["name"] in ("add", "today")
        assert isinstance(told, ToolMessage)
        assert isinstance(answer, AIMessage)
