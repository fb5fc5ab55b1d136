"""Chat models on the reference device: one path for sync, async, stream and batch."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from pydantic import ValidationError

from langchain_accel import ChatAscend, PromptTooLong
from langchain_accel.errors import DeviceUnavailable, EngineClosed, InvalidRequest, ModelRejected
from langchain_accel.runtime import registry
from tests.reference_models import ChatReference, ReferenceLLM

MESSAGES = [SystemMessage("You are brief."), HumanMessage("Name a colour.")]


@pytest.fixture(scope="module")
def chat(tiny: Path) -> Iterator[ChatReference]:
    model = ChatReference(model=str(tiny), rows=8, max_len=256, max_tokens=24)
    yield model.load()
    model.close()


async def test_invoke_stream_async_and_batch_give_the_same_answer(chat: ChatReference) -> None:
    """Also where the answer ends in what might have become a stop string.

    Mutant seen to fail: the text held back for a stop string lost at the end of a stream.
    """
    answer = chat.invoke(MESSAGES)
    stop = [answer.text[-3:] + "and never more"]
    streamed = list(chat.stream(MESSAGES, stop=stop))
    astreamed = [chunk async for chunk in chat.astream(MESSAGES, stop=stop)]
    others = [
        chat.invoke(MESSAGES, stop=stop).content,
        "".join(str(chunk.content) for chunk in streamed),
        "".join(str(chunk.content) for chunk in astreamed),
        (await chat.ainvoke(MESSAGES, stop=stop)).content,
        chat.batch([MESSAGES, MESSAGES], stop=stop)[1].content,
        (await chat.abatch([MESSAGES, MESSAGES], stop=stop))[0].content,
        chat.generate([MESSAGES], stop=stop).generations[0][0].text,
    ]
    assert others == [answer.content] * len(others)
    assert len(streamed) > 2, "an answer streams in more than one piece"


def test_usage_and_finish_reason_are_reported_once(chat: ChatReference) -> None:
    answer = chat.invoke(MESSAGES, max_tokens=5)
    assert isinstance(answer, AIMessage)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 5
    assert answer.usage_metadata["input_tokens"] == chat.get_num_tokens_from_messages(MESSAGES)
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.response_metadata["model_name"] == chat.model
    chunks = list(chat.stream(MESSAGES, max_tokens=5))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.usage_metadata is not None
    for count in ("input_tokens", "output_tokens", "total_tokens"):
        assert whole.usage_metadata[count] == answer.usage_metadata[count]
    assert whole.response_metadata["finish_reason"] == "length"
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1


def test_a_repeated_prompt_is_read_from_the_kv_cache(chat: ChatReference) -> None:
    messages = [HumanMessage("Tell me about the colour of the sea, please, in a few words.")]
    chat.invoke(messages)
    again = chat.invoke(messages)
    assert again.usage_metadata is not None
    assert again.usage_metadata["input_token_details"]["cache_read"] == again.usage_metadata["input_tokens"] - 1


def test_a_batch_runs_as_a_batch(chat: ChatReference) -> None:
    """Sixteen questions through an LCEL chain take at most a quarter of the steps they take one after the other.

    Mutant seen to fail: LangChain's own width of the thread pool.
    """
    prompt = ChatPromptTemplate.from_messages([("system", "Answer from: {context}"), ("human", "{question}")])
    context = {"context": lambda _: "the sea is green", "question": RunnablePassthrough()}
    chain = context | prompt | chat | StrOutputParser()
    questions = [f"Question number {index}: why?" for index in range(16)]

    def steps() -> int:
        return chat.stats().prefill_steps + chat.stats().decode_steps

    before = steps()
    alone = [chain.invoke(question) for question in questions]
    sequential, before = steps() - before, steps()
    together = chain.batch(questions)
    batched = steps() - before
    assert together == alone
    assert batched * 4 <= sequential


def test_stop_strings_end_the_answer_and_are_not_part_of_it(chat: ChatReference) -> None:
    whole = str(chat.invoke(MESSAGES).content)
    stop = whole[3:5]
    assert chat.invoke(MESSAGES, stop=[stop]).content == whole[: whole.index(stop)]
    field = chat.model_copy(update={"stop": [stop]})
    assert field.invoke(MESSAGES).content == whole[: whole.index(stop)]
    assert "".join(str(c.content) for c in chat.stream(MESSAGES, stop=[stop])) == whole[: whole.index(stop)]


def test_seeded_sampling_repeats_and_n_answers_differ(chat: ChatReference) -> None:
    hot = {"temperature": 1.5, "seed": 7}
    assert chat.invoke(MESSAGES, **hot).content == chat.invoke(MESSAGES, **hot).content
    (generations,) = chat.generate([MESSAGES], n=3, **hot).generations
    assert len({generation.text for generation in generations}) == 3
    assert generations[0].text == chat.invoke(MESSAGES, **hot).content
    with pytest.raises(InvalidRequest, match="n=3 answers cannot share one stream"):
        next(chat.stream(MESSAGES, n=3, **hot))


def test_logprobs_come_with_alternatives(chat: ChatReference) -> None:
    answer = chat.invoke(MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2)
    content = answer.response_metadata["logprobs"]["content"]
    assert len(content) == 3
    for entry in content:
        assert entry["logprob"] <= 0
        assert entry["top_logprobs"][0]["token"] == entry["token"], "greedy takes the most probable token"
        assert len(entry["top_logprobs"]) == 2


def test_a_prompt_over_the_window_is_langchains_overflow_error_with_both_numbers(chat: ChatReference) -> None:
    """Mutant seen to fail: the prompt cut to the window."""
    with pytest.raises(PromptTooLong, match="max_len=256") as caught:
        chat.invoke("word " * 400)
    assert isinstance(caught.value, ContextOverflowError)
    assert caught.value.prompt_tokens > caught.value.limit == 255
    with pytest.raises(ContextOverflowError):
        next(chat.stream("word " * 400))


def test_unknown_keywords_and_fields_are_refused(chat: ChatReference, tiny: Path) -> None:
    with pytest.raises(InvalidRequest, match="unknown keyword 'temprature'; a call takes max_tokens"):
        chat.invoke(MESSAGES, temprature=1)
    with pytest.raises(ValidationError, match="temprature"):
        ChatReference(model=str(tiny), temprature=1)
    with pytest.raises(ValidationError, match="prefil_shapes"):
        ChatReference(model=str(tiny), options={"prefil_shapes": ((1, 8),)})
    with pytest.raises(InvalidRequest, match="temperature must be a number from 0 up, got -1"):
        chat.invoke(MESSAGES, temperature=-1)


def test_a_model_that_cannot_be_used_says_why(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="is not a folder"):
        ChatReference(model=str(tmp_path / "missing")).invoke("hi")
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny.iterdir():
        if file.name != "chat_template.jinja":
            (base / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelRejected, match="has no chat template"):
        ChatReference(model=str(base), max_len=128).invoke("hi")
    assert ReferenceLLM(model=str(base), max_len=128).invoke("hi", max_tokens=2) is not None
    templated = ChatReference(model=str(base), max_len=128, chat_template="{{ messages[0].content }}")
    assert templated.invoke("hi", max_tokens=2)


@pytest.mark.skipif(find_spec("mindspore") is not None, reason="MindSpore is here")
@pytest.mark.parametrize(("model", "extra"), [(ChatAscend, "ascend")])
def test_devices_that_are_not_here_say_so_with_the_line_that_installs_them(model: type, extra: str, tiny: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=rf'pip install "langchain-accel\[{extra}\]"'):
        model(model=str(tiny)).invoke("hi")


def test_objects_with_the_same_plan_share_one_engine(chat: ChatReference, tiny: Path) -> None:
    same = ChatReference(model=str(tiny), rows=8, max_len=256, temperature=0.5)
    other = ChatReference(model=str(tiny), rows=4, max_len=256)
    llm = ReferenceLLM(model=str(tiny), rows=8, max_len=256)
    assert same._engine_lease().engine is chat._engine_lease().engine
    assert llm._engine_lease().engine is chat._engine_lease().engine
    assert other._engine_lease().engine is not chat._engine_lease().engine
    other.close()


def test_copies_share_the_engine_and_pickles_load_their_own(chat: ChatReference) -> None:
    engine = chat._engine_lease().engine
    assert copy.deepcopy(chat)._engine_lease().engine is engine
    assert chat.bind(stop=["x"]).bound._engine_lease().engine is engine
    assert pickle.loads(pickle.dumps(chat)).invoke(MESSAGES).content == chat.invoke(MESSAGES).content


def test_close_releases_and_the_next_call_loads_again(tiny: Path) -> None:
    model = ChatReference(model=str(tiny), rows=2, max_len=128, max_tokens=4)
    first = model.invoke("hi").content
    engine = model._engine_lease().engine
    model.close()
    assert engine.closed
    with pytest.raises(EngineClosed):
        engine.submit([1])
    assert model.invoke("hi").content == first
    plans = len(registry._entries)
    del model
    assert len(registry._entries) == plans - 1, "dropping the last object releases the engine"


def test_cache_keys_tell_models_and_settings_apart(chat: ChatReference) -> None:
    keys = {
        model._get_llm_string()
        for model in (
            chat,
            chat.model_copy(update={"temperature": 0.3}),
            chat.model_copy(update={"model": "other"}),
            chat.model_copy(update={"stop": ["x"]}),
            chat.model_copy(update={"chat_template_kwargs": {"enable_thinking": False}}),
            chat.model_copy(update={"repetition_penalty": 1.2}),
            chat.model_copy(update={"tool_format": "hermes"}),
            chat.model_copy(update={"tool_grammar": "forced"}),
        )
    }
    assert len(keys) == 8


def test_leaving_a_stream_early_frees_its_row(chat: ChatReference) -> None:
    aborted = chat.stats().aborted
    for chunk in chat.stream(MESSAGES, max_tokens=200, ignore_eos=True):
        assert chunk is not None
        break
    chat.invoke("hi", max_tokens=2)  # a step later
    assert chat.stats().aborted == aborted + 1
    assert chat.stats().running == 0


async def test_cancelling_a_task_frees_its_row(chat: ChatReference) -> None:
    aborted = chat.stats().aborted
    task = asyncio.create_task(chat.ainvoke(MESSAGES, max_tokens=200, ignore_eos=True))
    while chat.stats().running == 0:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await chat.ainvoke("hi", max_tokens=2)
    assert chat.stats().aborted == aborted + 1
    assert chat.stats().running == 0


async def test_a_load_does_not_block_the_event_loop(tiny: Path) -> None:
    model = ChatReference(model=str(tiny), rows=3, max_len=128, max_tokens=2)
    loop_thread, load_threads = threading.get_ident(), []
    plain = ChatReference._engine_lease

    def noted(self: ChatReference, model: str | None = None) -> registry.Lease:
        load_threads.append(threading.get_ident())
        return plain(self, model)

    ChatReference._engine_lease = noted
    try:
        await model.ainvoke("hi")
    finally:
        ChatReference._engine_lease = plain
    assert load_threads
    assert loop_thread not in load_threads
    model.close()


class Tokens(BaseCallbackHandler):
    """Collects what `on_llm_new_token` brings."""

    def __init__(self) -> None:
        self.text = ""
        self.raise_error = True

    def on_llm_new_token(self, token: str, **kwargs: object) -> None:
        self.text += token


def test_token_callbacks_hear_the_stream_once(chat: ChatReference) -> None:
    tokens = Tokens()
    text = "".join(str(chunk.content) for chunk in chat.stream(MESSAGES, config={"callbacks": [tokens]}))
    assert tokens.text == text
