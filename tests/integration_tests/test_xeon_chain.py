"""The main job, end to end: LangChain chains on the Xeon device, against transformers as the oracle."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from langchain_core.output_parsers import StrOutputParser  # noqa: E402
from langchain_core.prompts import ChatPromptTemplate  # noqa: E402
from langchain_core.runnables import RunnablePassthrough  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from langchain_accel import ChatXeon, XeonLLM, XeonOptions  # noqa: E402
from langchain_accel.errors import ModelRejected, PlanRejected  # noqa: E402
from tests.tiny_models import make  # noqa: E402

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("llama", tmp_path_factory.mktemp("xeon") / "llama")


@pytest.fixture(scope="module")
def chat(folder: Path) -> Iterator[ChatXeon]:
    model = ChatXeon(model=str(folder), rows=8, max_len=128, max_tokens=NEW_TOKENS, dtype="float32")
    yield model.load()
    assert model.stats().undeclared_shapes == 0
    assert model.stats().running == model.stats().queued == 0
    model.close()


def oracle(folder: Path, text: str) -> str:
    """What transformers' own greedy `generate` answers to a rendered prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_a_chain_answers_with_the_tokens_of_generate(chat: ChatXeon, folder: Path) -> None:
    """Alone, streamed and in a batch. Mutant seen to fail: prompts rendered without the generation prompt."""
    prompt = ChatPromptTemplate.from_messages([("system", "Use: {context}"), ("human", "{question}")])
    context = {"context": lambda _: "the sea is green", "question": RunnablePassthrough()}
    chain = context | prompt | chat | StrOutputParser()
    questions = [f"What is number {index}?" for index in range(6)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for question in questions:
        messages = [{"role": "system", "content": "Use: the sea is green"}, {"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        expected.append(oracle(folder, text))
    assert len(set(expected)) > 1, "different questions have different answers"
    assert [chain.invoke(question) for question in questions] == expected
    assert ["".join(chain.stream(question)) for question in questions] == expected
    assert chain.batch(questions) == expected


async def test_threads_and_tasks_at_once_get_the_answers_they_would_get_alone(chat: ChatXeon) -> None:
    """Low and high load at once, with early leavers among them."""
    shuffled = random.Random(0)
    questions = [f"{'very ' * shuffled.randrange(8)}short question {index}" for index in range(40)]
    alone = {question: chat.invoke(question).content for question in questions}
    answers: dict[str, str] = {}

    def ask(some: list[str]) -> None:
        for question in some:
            if shuffled.random() < 0.3:
                next(iter(chat.stream(question)))
            answers[question] = str(chat.invoke(question).content)

    async def aask(question: str) -> None:
        answers[question + "!"] = "".join([str(chunk.content) async for chunk in chat.astream(question)])

    threads = [threading.Thread(target=ask, args=(questions[index::8],)) for index in range(8)]
    for thread in threads:
        thread.start()
    await asyncio.gather(*(aask(question) for question in questions))
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert answers == alone | {question + "!": answer for question, answer in alone.items()}


def test_the_shared_part_of_a_batch_is_computed_once(folder: Path) -> None:
    """Retrieval questions over one context: its tokens are computed by the first and copied by the others.

    Mutant seen to fail: requests do not wait for a prefix that is being computed.
    """
    options = XeonOptions(prefill_chunk=16)  # several prefill steps a prompt: requests meet while one is computed
    llm = XeonLLM(model=str(folder), rows=8, max_len=128, max_tokens=4, dtype="float32", options=options).load()
    context = "the quick brown fox jumps over the lazy dog. " * 5
    result = llm.generate([f"{context} {index}?" for index in range(6)])
    usage = result.llm_output["token_usage"]
    # All but a last piece that is not worth waiting for.
    assert usage["reused_prompt_tokens"] >= 0.6 * usage["prompt_tokens"] * 5 / 6
    llm.close()


def test_the_llm_class_gives_the_same_engine_and_the_right_tokens(chat: ChatXeon, folder: Path) -> None:
    llm = XeonLLM(model=str(folder), rows=8, max_len=128, max_tokens=NEW_TOKENS, dtype="float32")
    text = "The capital of France is"
    assert llm.batch([text, text + " the"]) == [oracle(folder, text), oracle(folder, text + " the")]
    assert llm._engine_lease().engine is chat._engine_lease().engine


def test_a_corrupt_weight_file_is_named(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 500 if file.suffix == ".safetensors" else None])
    with pytest.raises(ModelRejected, match=r"model\.safetensors"):
        ChatXeon(model=str(tmp_path), max_len=128).invoke("hi")


def test_too_little_memory_is_told_before_loading(folder: Path) -> None:
    with pytest.raises(PlanRejected, match="rows"):
        ChatXeon(model=str(folder), rows=1_000_000_000, max_len=128).invoke("hi")


def test_a_window_over_the_models_positions_names_both_numbers(folder: Path) -> None:
    with pytest.raises(PlanRejected, match=r"(?s)4096.*128"):
        ChatXeon(model=str(folder), max_len=4096).invoke("hi")


def test_options_are_checked_when_the_object_is_made(folder: Path) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1"):
        ChatXeon(model=str(folder), options=XeonOptions(threads=0))
    with pytest.raises(ValueError, match="thread"):
        ChatXeon(model=str(folder), options={"thread": 1})
