"""Standard tests for text completion models: what `langchain_tests` has for chat models and not for LLMs.

Subclass `LLMStandardTests` and say which class, and with which parameters. Each law names in its docstring the mutants
on which it is seen to fail; `test_llm_mutants.py` holds them.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel
from pydantic import ValidationError

from langchain_accel import AccelLLM
from langchain_accel.errors import InvalidRequest

PROMPT = "Once upon a time"
OTHERS = ("The sea and the stars", "A fox", "What is the weather in Paris today?", "one two three", "Tell me", "x")
SECONDS = 20


class Heard(BaseCallbackHandler):
    """Writes down what happens, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.tokens: list[str] = []
        self.errors: list[BaseException] = []
        self.starts: list[dict[str, Any]] = []
        self.results: list[Any] = []
        self.open: set[UUID] = set()
        self.most_open = 0
        self.lock = threading.Lock()

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **kwargs: Any) -> None:
        with self.lock:
            self.events.append("start")
            self.starts.append({"prompts": prompts, **kwargs})
            self.open.add(run_id)
            self.most_open = max(self.most_open, len(self.open))

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.events.append("token")
        self.tokens.append(token)

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        with self.lock:
            self.events.append("end")
            self.results.append(response)
            self.open.discard(run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        with self.lock:
            self.events.append("error")
            self.errors.append(error)
            self.open.discard(run_id)


class HeardAsync(AsyncCallbackHandler):
    """Writes down what happens, in order, in an event loop."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.tokens: list[str] = []

    async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.events.append("start")

    async def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.events.append("token")
        self.tokens.append(token)

    async def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.events.append("end")


class Keys(BaseCache):
    """A cache that never has an answer, and knows what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def lookup(self, prompt: str, llm_string: str) -> None:
        self.asked.append((prompt, llm_string))

    def update(self, prompt: str, llm_string: str, return_val: Any) -> None:
        pass

    def clear(self, **kwargs: Any) -> None:
        self.asked.clear()


class LLMStandardTests:
    """Laws of every LLM class of this package."""

    @property
    def llm_class(self) -> type[AccelLLM]:
        """The class under test."""
        raise NotImplementedError

    @property
    def llm_params(self) -> dict[str, Any]:
        """What makes a small model: at least 4 rows, a window of 128 to 512 tokens, answers of 8 tokens or more."""
        raise NotImplementedError

    @property
    def other_model(self) -> str | None:
        """Another model of the same plan, or nothing."""
        return None

    @pytest.fixture
    def llm(self) -> Iterator[AccelLLM]:
        """A model of its own for every test; it shares the engine with those that are loaded."""
        model = self.make()
        yield model
        model.close()

    def make(self, **changes: Any) -> AccelLLM:
        """Return a model with some parameters changed."""
        return self.llm_class(**{**self.llm_params, **changes})

    # One answer, four ways

    def test_invoke_gives_the_answer_without_the_prompt(self, llm: AccelLLM) -> None:
        """Mutant: `EchoesThePrompt`."""
        answer = llm.invoke(PROMPT)
        assert isinstance(answer, str)
        assert answer
        assert not answer.startswith(PROMPT)

    def test_a_stream_is_the_answer_in_pieces(self, llm: AccelLLM) -> None:
        """Mutants: `StreamsOneLump`, `StreamDropsItsFirstPiece`."""
        pieces = list(llm.stream(PROMPT))
        assert "".join(pieces) == llm.invoke(PROMPT)
        assert sum(map(bool, pieces)) > 2

    async def test_ainvoke_gives_the_same_answer(self, llm: AccelLLM) -> None:
        """Mutant: `AnswersShorterInALoop`."""
        assert await llm.ainvoke(PROMPT) == llm.invoke(PROMPT)

    async def test_an_asynchronous_stream_is_the_answer_in_pieces(self, llm: AccelLLM) -> None:
        """Mutants: `StreamsOneLump`, `StreamDropsItsFirstPiece`."""
        pieces = [piece async for piece in llm.astream(PROMPT)]
        assert "".join(pieces) == llm.invoke(PROMPT)
        assert sum(map(bool, pieces)) > 2

    async def test_an_event_stream_holds_the_answer(self, llm: AccelLLM) -> None:
        """Mutants: `StreamsOneLump`, `StreamDropsItsFirstPiece`."""
        events = [event async for event in llm.astream_events(PROMPT, version="v2")]
        pieces = [str(event["data"]["chunk"]) for event in events if event["event"] == "on_llm_stream"]
        assert "".join(pieces) == llm.invoke(PROMPT)
        assert sum(map(bool, pieces)) > 2

    # Many prompts

    def test_a_batch_answers_every_prompt_in_order(self, llm: AccelLLM) -> None:
        """Mutant: `AnswersInReverse`."""
        assert llm.batch(list(OTHERS)) == [llm.invoke(prompt) for prompt in OTHERS]

    async def test_an_asynchronous_batch_answers_every_prompt_in_order(self, llm: AccelLLM) -> None:
        """Mutant: `AnswersInReverse`."""
        assert await llm.abatch(list(OTHERS)) == [await llm.ainvoke(prompt) for prompt in OTHERS]

    def test_batch_as_completed_answers_every_prompt(self, llm: AccelLLM) -> None:
        """Mutant: `TakesItsTurns`."""
        assert sorted(llm.batch_as_completed(list(OTHERS))) == list(enumerate(llm.batch(list(OTHERS))))

    def test_the_prompts_of_a_batch_run_together(self, llm: AccelLLM) -> None:
        """Mutant: `OneAfterTheOther`."""
        before = llm.stats().decode_steps
        llm.batch([PROMPT, *OTHERS[:3]], max_tokens=12, ignore_eos=True)
        assert llm.stats().decode_steps - before < 2 * 12

    def test_return_exceptions_costs_the_bad_prompt_only(self, llm: AccelLLM) -> None:
        """LangChain's own `BaseLLM.batch` gives every prompt the error of one. Mutant: `OneErrorForAll`."""
        good, bad, fine = llm.batch([PROMPT, self.too_long(llm), "x"], return_exceptions=True)
        assert isinstance(bad, ContextOverflowError)
        assert [good, fine] == [llm.invoke(PROMPT), llm.invoke("x")]

    async def test_return_exceptions_costs_the_bad_prompt_only_in_a_loop(self, llm: AccelLLM) -> None:
        """Mutant: `OneErrorForAll`."""
        good, bad, fine = await llm.abatch([PROMPT, self.too_long(llm), "x"], return_exceptions=True)
        assert isinstance(bad, ContextOverflowError)
        assert [good, fine] == [llm.invoke(PROMPT), llm.invoke("x")]

    @pytest.mark.parametrize("return_exceptions", [False, True])
    def test_max_concurrency_bounds_what_runs_at_once(self, llm: AccelLLM, return_exceptions: bool) -> None:
        """Mutant: `IgnoresMaxConcurrency`."""
        heard = Heard()
        config: Any = {"max_concurrency": 2, "callbacks": [heard]}
        answers = llm.batch(list(OTHERS), config, return_exceptions=return_exceptions)
        assert answers == llm.batch(list(OTHERS))
        assert heard.most_open <= 2

    # What an answer says about itself

    def test_generate_reports_usage_model_and_why_it_ended(self, llm: AccelLLM) -> None:
        """Mutants: `ForgetsUsage`, `CountsTheFirstPromptOnly`, `NamesNoModel`."""
        self.well_reported(llm, llm.generate([PROMPT, "x"], max_tokens=5, ignore_eos=True))

    async def test_agenerate_reports_usage_model_and_why_it_ended(self, llm: AccelLLM) -> None:
        """Mutants: `ForgetsUsage`, `CountsTheFirstPromptOnly`, `NamesNoModel`."""
        self.well_reported(llm, await llm.agenerate([PROMPT, "x"], max_tokens=5, ignore_eos=True))

    def well_reported(self, llm: AccelLLM, result: Any) -> None:
        """Two answers of 5 tokens to two prompts, both cut."""
        usage = result.llm_output["token_usage"]
        special = len(llm._engine_lease().checkpoint.encode("", add_special_tokens=True))
        prompts = sum(llm.get_num_tokens(prompt) + special for prompt in (PROMPT, "x"))
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompts, 10)
        assert usage["total_tokens"] == prompts + 10
        assert result.llm_output["model_name"] == llm.model
        assert [one.generation_info["finish_reason"] for [one] in result.generations] == ["length", "length"]

    def test_a_stream_reports_usage_model_and_why_it_ended(self, llm: AccelLLM) -> None:
        """Whoever listens gets them with the end of the run. Mutant: `StreamsWithoutAWord`."""
        heard = Heard()
        list(llm.stream(PROMPT, {"callbacks": [heard]}, max_tokens=5, ignore_eos=True))
        info = heard.results[0].generations[0][0].generation_info
        assert info
        assert info["finish_reason"] == "length"
        assert info["token_usage"]["completion_tokens"] == 5
        assert info["model_name"] == llm.model

    def test_the_model_that_answered_is_named(self, llm: AccelLLM) -> None:
        """`model=` of a call chooses another one. Mutant: `NamesTheModelOfTheField`."""
        if self.other_model is None:
            pytest.skip("no other model at hand")
        result = llm.generate([PROMPT], model=self.other_model)
        assert result.llm_output["model_name"] == self.other_model
        assert result.generations[0][0].generation_info["model_name"] == self.other_model
        assert result.generations[0][0].text != llm.invoke(PROMPT)

    def test_n_answers_stand_together(self, llm: AccelLLM) -> None:
        """Mutant: `AnswersOnce`."""
        result = llm.generate([PROMPT, "x"], n=2, temperature=1, seed=1)
        assert [len(answers) for answers in result.generations] == [2, 2]
        assert result.generations[0][0].text == llm.invoke(PROMPT, temperature=1, seed=1)

    def test_logprobs_are_reported_for_every_token(self, llm: AccelLLM) -> None:
        """Mutant: `ForgetsLogprobs`."""
        [[answer]] = llm.generate([PROMPT], max_tokens=4, ignore_eos=True, top_logprobs=2).generations
        entries = answer.generation_info["logprobs"]
        assert len(entries) == 4
        assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in entries)

    def test_tokens_are_counted_by_the_models_own_tokenizer(self, llm: AccelLLM) -> None:
        """Mutant: `CountsWords`."""
        ids = llm.get_token_ids(PROMPT)
        assert llm.get_num_tokens(PROMPT) == len(ids)
        assert llm._engine_lease().checkpoint.tokenizer.decode(ids) == PROMPT

    # Settings

    def test_max_tokens_is_the_longest_answer(self, llm: AccelLLM) -> None:
        """As a keyword, as a field, and in a stream. Mutant: `AnswersInFull`."""
        for result in (
            llm.generate([PROMPT], max_tokens=3, ignore_eos=True),
            self.make(max_tokens=3, ignore_eos=True).generate([PROMPT]),
        ):
            assert result.llm_output["token_usage"]["completion_tokens"] == 3
        text = llm.invoke(PROMPT, max_tokens=3, ignore_eos=True)
        assert "".join(llm.stream(PROMPT, max_tokens=3, ignore_eos=True)) == text

    def test_stop_strings_end_the_answer_and_are_no_part_of_it(self, llm: AccelLLM) -> None:
        """As an argument, as a field, bound, and in a batch. Mutants: `IgnoresStop`, `KeepsTheStopString`."""
        whole, stop = self.stop(llm)
        expected = whole[: whole.index(stop)]
        assert llm.invoke(PROMPT, stop=[stop]) == expected
        assert self.make(stop=[stop]).invoke(PROMPT) == expected
        assert self.make(stop_sequences=[stop]).invoke(PROMPT) == expected
        assert llm.bind(stop=["never to be seen", stop]).batch([PROMPT, PROMPT]) == [expected] * 2
        [[answer]] = llm.generate([PROMPT], stop=[stop]).generations
        assert answer.generation_info["finish_reason"] == "stop"

    async def test_a_stream_never_shows_a_stop_string(self, llm: AccelLLM) -> None:
        """Not even its beginning. Mutants: `IgnoresStop`, `KeepsTheStopString`."""
        whole, stop = self.stop(llm)
        expected = whole[: whole.index(stop)]
        assert "".join(llm.stream(PROMPT, stop=[stop])) == expected
        assert "".join([piece async for piece in llm.astream(PROMPT, stop=[stop])]) == expected

    def test_sampling_repeats_itself_by_its_seed_only(self, llm: AccelLLM) -> None:
        """Mutants: `IgnoresSeed`, `IgnoresTemperature`."""
        warm = [llm.invoke(PROMPT, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
        assert warm[0] == warm[1]
        assert warm[0] != warm[2]
        assert warm[0] != llm.invoke(PROMPT)
        assert llm.invoke(PROMPT) == llm.invoke(PROMPT, temperature=0)

    def test_a_seed_holds_whatever_else_is_in_the_batch(self, llm: AccelLLM) -> None:
        """Mutant: `SeedsByPosition`."""
        alone = llm.invoke(PROMPT, temperature=1.5, seed=7)
        assert llm.batch([*OTHERS[:3], PROMPT], temperature=1.5, seed=7)[3] == alone

    def test_keywords_of_a_call_win_over_fields(self, llm: AccelLLM) -> None:
        """Mutant: `FieldsWin`."""
        short = self.make(max_tokens=2, temperature=1.5, seed=3)
        assert short.invoke(PROMPT, max_tokens=8, temperature=0) == llm.invoke(PROMPT, max_tokens=8)

    def test_unknown_keywords_and_fields_are_refused_by_name(self, llm: AccelLLM) -> None:
        """Mutant: `TakesAnyKeyword`."""
        with pytest.raises(InvalidRequest, match="top_q"):
            llm.invoke(PROMPT, top_q=3)
        with pytest.raises(InvalidRequest, match="top_q"):
            list(llm.stream(PROMPT, top_q=3))
        with pytest.raises(ValidationError, match="top_q"):
            self.make(top_q=3)

    def test_a_prompt_longer_than_the_window_is_refused_with_both_numbers(self, llm: AccelLLM) -> None:
        """Mutant: `CutsLongPrompts`."""
        for ask in (llm.invoke, lambda prompt: list(llm.stream(prompt)), lambda prompt: llm.batch([prompt, "x"])):
            with pytest.raises(ContextOverflowError) as caught:
                ask(self.too_long(llm))
            numbers = {int(number) for number in re.findall(r"\d+", str(caught.value))}
            assert caught.value.prompt_tokens in numbers
            assert caught.value.limit in numbers
            assert caught.value.prompt_tokens > llm.max_len

    # Constraints

    def test_a_regular_expression_binds_the_whole_answer(self, llm: AccelLLM) -> None:
        """Mutant: `AnswersFreely`."""
        pattern = r"[0-9]{3}-[a-f]{2}"
        for answer in self.four_ways(llm, regex=pattern):
            assert re.fullmatch(pattern, answer)

    def test_a_choice_is_answered_to_the_letter(self, llm: AccelLLM) -> None:
        """Mutant: `AnswersFreely`."""
        for answer in self.four_ways(llm, choice=["yes", "no", "vielleicht ö"]):
            assert answer in ("yes", "no", "vielleicht ö")

    def test_a_lark_grammar_binds_the_whole_answer(self, llm: AccelLLM) -> None:
        """Mutant: `AnswersFreely`."""
        grammar = 'start: "SELECT " column ("," column){0,2} ";"\ncolumn: "a" | "b" | "c"'
        for answer in self.four_ways(llm, lark=grammar):
            assert re.fullmatch(r"SELECT [abc](,[abc]){0,2};", answer)

    def test_a_constrained_answer_is_whole_where_tokens_are_few(self, llm: AccelLLM) -> None:
        """Mutant: `CutsConstrainedAnswers`."""
        words = r'\["[a-z]*"(, "[a-z]*")*\]'
        for limit in (6, 9, 14):
            assert re.fullmatch(words, llm.invoke(PROMPT, regex=words, max_tokens=limit))

    def test_two_constraints_and_broken_ones_are_refused(self, llm: AccelLLM) -> None:
        """Mutants: `TakesOneConstraintOfTwo`, `AnswersFreely`."""
        with pytest.raises(InvalidRequest, match="regex and choice"):
            llm.invoke(PROMPT, regex="a+", choice=["a"])
        with pytest.raises(InvalidRequest):
            llm.invoke(PROMPT, regex="(")

    # Callbacks, config, cache

    def test_callbacks_hear_the_start_every_token_and_the_end(self, llm: AccelLLM) -> None:
        """Mutants: `TellsNoTokens`, `TellsEveryTokenTwice`."""
        heard = Heard()
        text = "".join(llm.stream(PROMPT, {"callbacks": [heard]}))
        assert "".join(heard.tokens) == text
        assert heard.events[0] == "start"
        assert heard.events[-1] == "end"
        assert heard.events.count("start") == heard.events.count("end") == 1
        assert heard.starts[0]["prompts"] == [PROMPT]
        whole = Heard()
        llm.batch([PROMPT, "x"], {"callbacks": [whole]})
        assert sorted(whole.events) == ["end", "end", "start", "start"]

    async def test_asynchronous_callbacks_hear_the_same(self, llm: AccelLLM) -> None:
        """Mutants: `TellsNoTokens`, `TellsEveryTokenTwice`."""
        heard = HeardAsync()
        text = "".join([piece async for piece in llm.astream(PROMPT, {"callbacks": [heard]})])
        assert "".join(heard.tokens) == text
        assert (heard.events[0], heard.events[-1]) == ("start", "end")

    async def test_callbacks_hear_of_errors(self, llm: AccelLLM) -> None:
        """Mutant: `SwallowsErrors`."""
        heard = Heard()
        config: Any = {"callbacks": [heard]}
        for ask in (llm.invoke, lambda *args: list(llm.stream(*args))):
            with pytest.raises(ContextOverflowError):
                ask(self.too_long(llm), config)
        with pytest.raises(ContextOverflowError):
            await llm.ainvoke(self.too_long(llm), config)
        assert [type(error) for error in heard.errors] == [type(heard.errors[0])] * 3
        assert heard.events == ["start", "error"] * 3

    def test_tags_metadata_and_names_reach_whoever_listens(self, llm: AccelLLM) -> None:
        """With what LangSmith wants to know about a call. Mutant: `UnknownToLangSmith`."""
        heard = Heard()
        config: Any = {"callbacks": [heard], "tags": ["a"], "metadata": {"b": 1}, "run_name": "c"}
        llm.invoke(PROMPT, config, max_tokens=3)
        list(llm.stream(PROMPT, config, max_tokens=3))
        for start in heard.starts:
            assert start["tags"] == ["a"]
            assert start["name"] == "c"
            known = {"b": 1, "ls_model_type": "llm", "ls_model_name": llm.model, "ls_max_tokens": 3}
            assert known.items() <= start["metadata"].items()
            assert start["metadata"]["ls_provider"]

    def test_a_cache_answers_the_same_question_without_the_model(self, llm: AccelLLM) -> None:
        """Mutant: `NeverTheSameKeyTwice`."""
        cached = self.make(cache=InMemoryCache())
        first = cached.invoke(PROMPT, max_tokens=6)
        before = llm.stats().finished
        assert cached.invoke(PROMPT, max_tokens=6) == first
        assert asyncio.run(cached.ainvoke(PROMPT, max_tokens=6)) == first
        assert llm.stats().finished == before

    async def test_no_two_settings_share_a_key_of_the_cache(self, llm: AccelLLM) -> None:
        """Neither as fields nor as keywords of a call, which `BaseLLM` leaves out.

        Mutants: `OneKeyForAll`, `KeyWithoutTheSeed`, `KeyWithoutKeywords`.
        """
        changes: list[dict[str, Any]] = [
            *({"max_tokens": 2}, {"max_tokens": 3}, {"temperature": 0.5}, {"seed": 5}, {"seed": 6}, {"top_k": 2}),
            *({"top_p": 0.5}, {"repetition_penalty": 1.5}, {"logit_bias": {7: 1.0}}, {"stop": ["qx"]}, {"n": 2}),
        ]
        constraints: list[dict[str, Any]] = [{"regex": "[ab]"}, {"regex": "[cd]"}, {"choice": ["a"]}]
        keys = Keys()
        for change in [{}, *changes]:
            await self.make(cache=keys, **change).ainvoke(PROMPT)
        fields = [key for _, key in keys.asked]
        keys.clear()
        for call in [{}, *changes, *constraints]:
            self.make(cache=keys).invoke(PROMPT, **call)
        calls = [key for _, key in keys.asked]
        assert len(set(fields)) == len(fields) == 1 + len(changes)
        assert len(set(calls)) == len(calls) == 1 + len(changes) + len(constraints)

    # As a part of something larger

    def test_a_chain_answers_streams_and_batches(self, llm: AccelLLM) -> None:
        """Mutants: `StreamsOneLump`, `AnswersInReverse`."""
        chain = PromptTemplate.from_template("Tell me about {topic}") | llm | StrOutputParser()
        answers = [llm.invoke(f"Tell me about {topic}") for topic in ("foxes", "seas")]
        assert chain.batch([{"topic": "foxes"}, {"topic": "seas"}]) == answers
        pieces = list(chain.stream({"topic": "foxes"}))
        assert "".join(pieces) == answers[0]
        assert sum(map(bool, pieces)) > 2
        both = RunnableParallel(short=chain | (lambda text: text[:1]), whole=chain)
        assert both.invoke({"topic": "foxes"}) == {"short": answers[0][:1], "whole": answers[0]}

    def test_fallbacks_take_over_where_the_prompt_is_too_long(self, llm: AccelLLM) -> None:
        """Mutants: `SwallowsErrors`, `RaisesValueError`."""
        safe = llm.with_fallbacks([RunnableLambda(lambda _: "larger")], exceptions_to_handle=(ContextOverflowError,))
        assert safe.invoke(self.too_long(llm)) == "larger"
        assert safe.invoke(PROMPT) == llm.invoke(PROMPT)

    def test_a_retry_asks_again(self, llm: AccelLLM) -> None:
        """Mutants: `SwallowsErrors`, `RaisesValueError`."""
        heard = Heard()
        stubborn = llm.with_retry(
            retry_if_exception_type=(ContextOverflowError,), stop_after_attempt=2, wait_exponential_jitter=False
        )
        with pytest.raises(ContextOverflowError):
            stubborn.invoke(self.too_long(llm), {"callbacks": [heard]})
        assert heard.events == ["start", "error"] * 2
        assert stubborn.invoke(PROMPT) == llm.invoke(PROMPT)

    def test_configurable_fields_take_effect_and_load_nothing(self, llm: AccelLLM) -> None:
        """Mutants: `ReloadsForEveryObject`, `AnswersInFull`."""
        llm.load()
        engine = llm._engine_lease().engine
        flexible = llm.configurable_fields(max_tokens=ConfigurableField(id="longest"))
        short = flexible.with_config(configurable={"longest": 2})
        assert short.invoke(PROMPT) == llm.invoke(PROMPT, max_tokens=2) != llm.invoke(PROMPT)
        assert flexible.invoke(PROMPT) == llm.invoke(PROMPT)
        assert self.make(max_tokens=2)._engine_lease().engine is engine

    def test_copies_and_pickles_answer_alike(self, llm: AccelLLM) -> None:
        """Mutants: `CannotBePickled`, `ForgetsItselfWhenCopied`."""
        sampled = self.make(temperature=1.5, seed=11)
        answer = sampled.invoke(PROMPT)
        copies: list[Callable[[AccelLLM], Any]] = [
            *(copy.copy, copy.deepcopy, lambda model: model.model_copy(update={"tags": ["copied"]})),
            lambda model: pickle.loads(pickle.dumps(model)),
        ]
        assert [one(sampled).invoke(PROMPT) for one in copies] == [answer] * len(copies)

    # Leaving early

    def test_leaving_a_stream_frees_its_row(self, llm: AccelLLM) -> None:
        """Mutant: `FinishesWhatNobodyReads`."""
        before = llm.stats().aborted
        stream = llm.stream(PROMPT, max_tokens=100, ignore_eos=True)
        next(stream)
        stream.close()
        self.wait(lambda: llm.stats().running == 0)
        assert llm.stats().aborted == before + 1

    async def test_cancelling_a_task_frees_its_row(self, llm: AccelLLM) -> None:
        """Mutant: `AnswersInAThread`."""
        llm.load()
        before = llm.stats().aborted
        task = asyncio.create_task(llm.ainvoke(PROMPT, max_tokens=100, ignore_eos=True))
        while not llm.stats().running and not task.done():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        self.wait(lambda: llm.stats().running == 0)
        assert llm.stats().aborted == before + 1

    # Helpers

    def too_long(self, llm: AccelLLM) -> str:
        """Return a prompt that does not fit."""
        return "word " * llm.max_len

    def stop(self, llm: AccelLLM) -> tuple[str, str]:
        """Return an answer and a part of it that spans tokens."""
        whole = llm.invoke(PROMPT)
        middle = len(whole) // 2
        return whole, whole[middle : middle + 3]

    def four_ways(self, llm: AccelLLM, **call: Any) -> list[str]:
        """Return the answers of a call, a stream, a batch and a loop."""
        answers = [llm.invoke(PROMPT, **call), "".join(llm.stream(PROMPT, **call))]
        return [*answers, *llm.batch(["x", PROMPT], **call), asyncio.run(llm.ainvoke(PROMPT, **call))]

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds; fail if it never does."""
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.005)
