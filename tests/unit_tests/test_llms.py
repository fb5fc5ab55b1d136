"""Text completion on the reference device."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from langchain_core.callbacks import BaseCallbackHandler

from langchain_accel import AscendLLM, PromptTooLong
from langchain_accel.errors import DeviceUnavailable, InvalidRequest
from tests.reference_models import ReferenceLLM


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[ReferenceLLM]:
    model = ReferenceLLM(model=str(tiny), rows=8, max_len=256, max_tokens=16)
    yield model.load()
    model.close()


async def test_invoke_stream_async_and_batch_give_the_same_answer(llm: ReferenceLLM) -> None:
    answer = llm.invoke("Once upon a time")
    assert "".join(llm.stream("Once upon a time")) == answer
    assert "".join([piece async for piece in llm.astream("Once upon a time")]) == answer
    assert await llm.ainvoke("Once upon a time") == answer
    assert llm.batch(["Once upon a time", "x"])[0] == answer
    assert (await llm.abatch(["x", "Once upon a time"]))[1] == answer


def test_prompts_of_one_call_run_together(llm: ReferenceLLM) -> None:
    """Mutant seen to fail: prompts answered one after the other."""
    prompts = [f"Story number {index}" for index in range(16)]
    before = llm.stats().decode_steps
    alone = [llm.invoke(prompt, ignore_eos=True) for prompt in prompts]
    sequential, before = llm.stats().decode_steps - before, llm.stats().decode_steps
    assert llm.batch(prompts, ignore_eos=True) == alone
    assert (llm.stats().decode_steps - before) * 4 <= sequential


def test_a_batch_longer_than_the_queue_waits_for_itself(tiny: Path) -> None:
    """Mutant seen to fail: QueueFull for the caller who filled the queue himself."""
    llm = ReferenceLLM(model=str(tiny), rows=2, max_len=64, max_tokens=2, queue_limit=3)
    answers = llm.batch([f"{index}" for index in range(20)])
    assert answers == [llm.invoke(f"{index}") for index in range(20)]
    llm.close()


def test_generate_reports_usage_and_why_each_answer_ended(llm: ReferenceLLM) -> None:
    result = llm.generate(["a b c", "d e"], max_tokens=3, ignore_eos=True, n=2)
    assert [len(generations) for generations in result.generations] == [2, 2]
    assert result.generations[0][0].generation_info["finish_reason"] == "length"
    assert result.llm_output["token_usage"]["completion_tokens"] == 12
    assert result.llm_output["model_name"] == llm.model


def test_the_prompt_is_not_part_of_the_answer(llm: ReferenceLLM) -> None:
    prompt = "A very particular prompt"
    assert not llm.invoke(prompt).startswith(prompt)


def test_stop_strings_end_the_answer(llm: ReferenceLLM) -> None:
    whole = llm.invoke("Once upon a time")
    stop = whole[2:4]
    assert llm.invoke("Once upon a time", stop=[stop]) == whole[: whole.index(stop)]
    assert "".join(llm.stream("Once upon a time", stop=[stop])) == whole[: whole.index(stop)]


def test_errors_reach_the_caller(llm: ReferenceLLM) -> None:
    with pytest.raises(PromptTooLong):
        llm.invoke("word " * 500)
    with pytest.raises(InvalidRequest, match="unknown keyword 'tools'"):
        llm.invoke("hi", tools=[])


def test_one_bad_prompt_does_not_leak_the_others_of_its_batch(llm: ReferenceLLM) -> None:
    with pytest.raises(PromptTooLong):
        llm.batch(["fine", "word " * 500, "fine too"])
    llm.invoke("hi", max_tokens=2)
    assert llm.stats().running == llm.stats().queued == 0


@pytest.mark.skipif(find_spec("mindspore") is not None, reason="MindSpore is here")
@pytest.mark.parametrize("model", [AscendLLM])
def test_devices_that_are_not_here_say_so(model: type, tiny: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="pip install"):
        model(model=str(tiny)).invoke("hi")


def test_token_callbacks_hear_the_stream_once(llm: ReferenceLLM) -> None:
    """Mutant seen to fail: every token told twice."""
    heard: list[str] = []

    class Tokens(BaseCallbackHandler):
        def on_llm_new_token(self, token: str, **kwargs: object) -> None:
            heard.append(token)

    text = "".join(llm.stream("Once", config={"callbacks": [Tokens()]}))
    assert "".join(heard) == text


def test_tokens_are_counted_with_the_models_own_tokenizer(llm: ReferenceLLM) -> None:
    assert llm.get_num_tokens("Hello world") == len(llm.get_token_ids("Hello world")) > 0
