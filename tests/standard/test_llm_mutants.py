"""Every law of the LLM suite fails on a class that breaks it: the mutants its docstring names."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict
from typing_extensions import Self

from langchain_accel import AccelLLM
from tests.reference_models import ReferenceLLM
from tests.standard.llm_suite import LLMStandardTests
from tests.standard.test_llms_standard import OnTiny
from tests.tiny_checkpoint import make_tiny_checkpoint

LAWS: dict[str, Callable[..., Any]] = {
    name: law for name, law in vars(LLMStandardTests).items() if name.startswith("test_")
}


class Broken(Exception):
    """What a mutant raises where it breaks."""


class Honest(ReferenceLLM):
    """Breaks nothing: it must pass every law. Mutants change `ask` or `tell`, which all four ways go through."""

    def ask(self, prompts: list[str], stop: list[str] | None, call: dict[str, Any]) -> Any:
        """Return what the model is asked."""
        return prompts, stop, call

    def tell(self, result: LLMResult, prompts: list[str]) -> LLMResult:
        """Return what the caller is told."""
        return result

    def pieces(self, chunks: Iterator[GenerationChunk]) -> Iterator[GenerationChunk]:
        """Return what a stream shows."""
        return chunks

    def _generate(self, prompts: list[str], stop: Any = None, run_manager: Any = None, **call: Any) -> LLMResult:
        asked, stop, call = self.ask(prompts, stop, call)
        return self.tell(super()._generate(asked, stop, run_manager, **call), prompts)

    async def _agenerate(self, prompts: list[str], stop: Any = None, run_manager: Any = None, **call: Any) -> LLMResult:
        asked, stop, call = self.ask(prompts, stop, call)
        return self.tell(await super()._agenerate(asked, stop, run_manager, **call), prompts)

    def _stream(self, prompt: str, stop: Any = None, run_manager: Any = None, **call: Any) -> Iterator[GenerationChunk]:
        [asked], stop, call = self.ask([prompt], stop, call)
        with closing(super()._stream(asked, stop, None, **call)) as chunks:
            for chunk in self.pieces(chunks):
                if run_manager:
                    self.announce(run_manager.on_llm_new_token, chunk)
                yield chunk

    async def _astream(
        self, prompt: str, stop: Any = None, run_manager: Any = None, **call: Any
    ) -> AsyncIterator[GenerationChunk]:
        [asked], stop, call = self.ask([prompt], stop, call)
        for chunk in self.pieces(iter([chunk async for chunk in super()._astream(asked, stop, None, **call)])):
            if run_manager:
                for done in self.announce(run_manager.on_llm_new_token, chunk):
                    await done
            yield chunk

    def announce(self, tell: Callable[..., Any], chunk: GenerationChunk) -> list[Any]:
        """Tell callbacks of a token."""
        return [tell(chunk.text, chunk=chunk)]


# One answer


class EchoesThePrompt(Honest):
    def tell(self, result: LLMResult, prompts: list[str]) -> LLMResult:
        for prompt, answers in zip(prompts, result.generations, strict=True):
            answers[0].text = prompt + answers[0].text
        return result


class StreamsOneLump(Honest):
    def pieces(self, chunks: Iterator[GenerationChunk]) -> Iterator[GenerationChunk]:
        first, *rest = chunks
        yield sum(rest, first)


class StreamDropsItsFirstPiece(Honest):
    def pieces(self, chunks: Iterator[GenerationChunk]) -> Iterator[GenerationChunk]:
        next(chunks)
        yield from chunks


class AnswersShorterInALoop(Honest):
    async def _agenerate(self, prompts: list[str], stop: Any = None, run_manager: Any = None, **call: Any) -> LLMResult:
        return await super()._agenerate(prompts, stop, run_manager, **{**call, "max_tokens": 2})


# Many prompts


class AnswersInReverse(Honest):
    def tell(self, result: LLMResult, prompts: list[str]) -> LLMResult:
        result.generations.reverse()
        return result


class TakesItsTurns(Honest):
    """Answers as completed say 0 whose answer they are."""

    def batch_as_completed(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return ((0, answer) for _, answer in super().batch_as_completed(*args, **kwargs))


class OneAfterTheOther(Honest):
    def _generate(self, prompts: list[str], stop: Any = None, run_manager: Any = None, **call: Any) -> LLMResult:
        results = [super(OneAfterTheOther, self)._generate([prompt], stop, run_manager, **call) for prompt in prompts]
        return LLMResult(generations=[result.generations[0] for result in results], llm_output=results[0].llm_output)


class OneErrorForAll(Honest):
    def batch(self, *args: Any, **kwargs: Any) -> Any:
        return BaseLLM.batch(self, *args, **kwargs)

    async def abatch(self, *args: Any, **kwargs: Any) -> Any:
        return await BaseLLM.abatch(self, *args, **kwargs)


class IgnoresMaxConcurrency(Honest):
    def batch(self, inputs: Any, config: Any = None, **kwargs: Any) -> Any:
        return super().batch(inputs, {**(config or {}), "max_concurrency": None}, **kwargs)


# What an answer says about itself


class ForgetsUsage(Honest):
    def tell(self, result: LLMResult, prompts: list[str]) -> LLMResult:
        result.llm_output["token_usage"] = dict.fromkeys(result.llm_output["token_usage"], 0)
        return result


class CountsTheFirstPromptOnly(Honest):
    def tell(self, result: LLMResult, prompts: list[str]) -> LLMResult:
        result.llm_output["token_usage"] = result.generations[0][0].generation_info["token_usage"]
        return result


class NamesNoModel(Honest):
    def tell(self, result: LLMResult, prompts: list[str]) -> LLMResult:
        result.llm_output["model_name"] = ""
        return result


class StreamsWithoutAWord(Honest):
    def pieces(self, chunks: Iterator[GenerationChunk]) -> Iterator[GenerationChunk]:
        return (GenerationChunk(text=chunk.text, generation_info={}) for chunk in chunks)


class NamesTheModelOfTheField(Honest):
    def tell(self, result: LLMResult, prompts: list[str]) -> LLMResult:
        result.llm_output["model_name"] = self.model
        return result


class AnswersOnce(Honest):
    def tell(self, result: LLMResult, prompts: list[str]) -> LLMResult:
        return LLMResult(generations=[answers[:1] for answers in result.generations], llm_output=result.llm_output)


class ForgetsLogprobs(Honest):
    def tell(self, result: LLMResult, prompts: list[str]) -> LLMResult:
        result.generations[0][0].generation_info["logprobs"] = []
        return result


class CountsWords(Honest):
    def get_token_ids(self, text: str) -> list[int]:
        return list(range(10, 10 + len(text.split())))


# Settings


class Drops(Honest):
    """Not a mutant: what those are made of that do not hear a keyword or a field."""

    deaf_to: ClassVar[dict[str, Any]] = {}

    def ask(self, prompts: list[str], stop: list[str] | None, call: dict[str, Any]) -> Any:
        return prompts, stop, {**call, **self.deaf_to}


class AnswersInFull(Drops):
    deaf_to: ClassVar[dict[str, Any]] = {"max_tokens": 16}


class IgnoresSeed(Drops):
    deaf_to: ClassVar[dict[str, Any]] = {"seed": 1}


class IgnoresTemperature(Drops):
    deaf_to: ClassVar[dict[str, Any]] = {"temperature": 0}


class IgnoresStop(Honest):
    def ask(self, prompts: list[str], stop: list[str] | None, call: dict[str, Any]) -> Any:
        return prompts, None, call


class KeepsTheStopString(Honest):
    def _sampling(self, lease: Any, stop: Any, kwargs: Any) -> Any:
        self.__dict__["last_stop"] = list(stop or self.stop or [""])[-1]
        return super()._sampling(lease, stop, kwargs)

    def tell(self, result: LLMResult, prompts: list[str]) -> LLMResult:
        for answers in result.generations:
            answers[0].text += self.__dict__["last_stop"]
        return result

    def pieces(self, chunks: Iterator[GenerationChunk]) -> Iterator[GenerationChunk]:
        yield from chunks
        yield GenerationChunk(text=self.__dict__["last_stop"])


class SeedsByPosition(Honest):
    def _jobs(self, *args: Any) -> Any:
        jobs = super()._jobs(*args)
        for index, job in enumerate(jobs):
            if job.params.seed is not None:
                object.__setattr__(job.params, "seed", job.params.seed + index)
        return [job._replace(params=type(job.params)(**self.fields_of(job.params))) for job in jobs]

    @staticmethod
    def fields_of(params: Any) -> dict[str, Any]:
        return {name: getattr(params, name) for name in params.__dataclass_fields__}


class FieldsWin(Honest):
    def ask(self, prompts: list[str], stop: list[str] | None, call: dict[str, Any]) -> Any:
        return prompts, stop, {name: value for name, value in call.items() if getattr(self, name, None) is None}


class TakesAnyKeyword(Honest):
    model_config = ConfigDict(extra="ignore")

    def ask(self, prompts: list[str], stop: list[str] | None, call: dict[str, Any]) -> Any:
        return prompts, stop, {name: value for name, value in call.items() if name != "top_q"}


class CutsLongPrompts(Honest):
    def ask(self, prompts: list[str], stop: list[str] | None, call: dict[str, Any]) -> Any:
        return [prompt[:40] for prompt in prompts], stop, call


# Constraints


class AnswersFreely(Honest):
    def ask(self, prompts: list[str], stop: list[str] | None, call: dict[str, Any]) -> Any:
        free = {name: value for name, value in call.items() if name not in ("regex", "lark", "choice")}
        return prompts, stop, free


class CutsConstrainedAnswers(Honest):
    def tell(self, result: LLMResult, prompts: list[str]) -> LLMResult:
        for answers in result.generations:
            answers[0].text = answers[0].text[:-1]
        return result


class TakesOneConstraintOfTwo(Honest):
    def ask(self, prompts: list[str], stop: list[str] | None, call: dict[str, Any]) -> Any:
        return prompts, stop, {name: value for name, value in call.items() if name != "regex" or "choice" not in call}


# Callbacks, config, cache


class TellsNoTokens(Honest):
    def announce(self, tell: Callable[..., Any], chunk: GenerationChunk) -> list[Any]:
        return []


class TellsEveryTokenTwice(Honest):
    def announce(self, tell: Callable[..., Any], chunk: GenerationChunk) -> list[Any]:
        return [tell(chunk.text, chunk=chunk), tell(chunk.text, chunk=chunk)]


class SwallowsErrors(Honest):
    def _generate(self, prompts: list[str], *args: Any, **call: Any) -> LLMResult:
        try:
            return super()._generate(prompts, *args, **call)
        except ContextOverflowError:
            return LLMResult(generations=[[Generation(text="")] for _ in prompts])


class UnknownToLangSmith(Honest):
    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> Any:
        return {}


class NeverTheSameKeyTwice(Honest):
    calls: ClassVar[list[int]] = []

    @property
    def _identifying_params(self) -> Any:
        self.calls.append(1)
        return {**super()._identifying_params, "call": len(self.calls)}


class OneKeyForAll(Honest):
    @property
    def _identifying_params(self) -> Any:
        return {}


class KeyWithoutTheSeed(Honest):
    @property
    def _identifying_params(self) -> Any:
        return {name: value for name, value in super()._identifying_params.items() if name != "seed"}


class KeyWithoutKeywords(Honest):
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return BaseLLM.generate(self, *args, **kwargs)


# As a part of something larger


class RaisesValueError(Honest):
    def _generate(self, *args: Any, **call: Any) -> LLMResult:
        try:
            return super()._generate(*args, **call)
        except ContextOverflowError as error:
            raise Broken from error


class ReloadsForEveryObject(Honest):
    made: ClassVar[list[int]] = []

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self.made.append(1)
        self.queue_limit += len(self.made)


class CannotBePickled(Honest):
    def __getstate__(self) -> NoReturn:
        raise Broken


class ForgetsItselfWhenCopied(Honest):
    def __deepcopy__(self, memo: Any = None) -> Self:
        return type(self)(model=self.model, rows=self.rows, max_len=self.max_len, dtype=self.dtype)


# Leaving early


class FinishesWhatNobodyReads(Honest):
    def pieces(self, chunks: Iterator[GenerationChunk]) -> Iterator[GenerationChunk]:
        return iter(list(chunks))


class AnswersInAThread(Honest):
    async def _agenerate(self, prompts: list[str], stop: Any = None, run_manager: Any = None, **call: Any) -> LLMResult:
        return await asyncio.to_thread(self._generate, prompts, stop, None, **call)


def _all(kind: type) -> list[type]:
    return [each for child in kind.__subclasses__() for each in [child, *_all(child)]]


MUTANTS = {mutant.__name__: mutant for mutant in _all(Honest) if mutant is not Drops}


class Laws(OnTiny):
    """The suite, applied to one class. Not collected: its laws are called by the tests below."""

    kind: type[AccelLLM] = Honest

    @property
    def llm_class(self) -> type[AccelLLM]:
        return self.kind

    def apply(self, kind: type[AccelLLM], law: str) -> None:
        """Run one law."""
        self.kind = kind
        wanted = inspect.signature(LAWS[law]).parameters
        llm = self.make()
        arguments = {"llm": llm, **({"return_exceptions": False} if "return_exceptions" in wanted else {})}
        try:
            outcome = LAWS[law](self, **arguments)
            if inspect.iscoroutine(outcome):
                asyncio.run(outcome)
        finally:
            llm.close()


@pytest.fixture(scope="module")
def laws(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laws]:
    Laws.folder = str(tiny)
    Laws.another = str(make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "another", seed=1))
    kept = [Laws().make(model=folder).load() for folder in (Laws.folder, Laws.another)]
    yield Laws()
    for model in kept:
        model.close()


def named(law: str) -> list[str]:
    """Return the mutants that a law's docstring names."""
    return re.findall("`([A-Z][A-Za-z0-9]+)`", (LAWS[law].__doc__ or "").partition("Mutant")[2])


@pytest.mark.parametrize("law", LAWS)
def test_a_class_that_breaks_nothing_passes(law: str, laws: Laws) -> None:
    laws.apply(Honest, law)


@pytest.mark.parametrize(("law", "mutant"), [(law, mutant) for law in LAWS for mutant in named(law)])
def test_law_fails_on_mutant(law: str, mutant: str, laws: Laws) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, Broken)):
        laws.apply(MUTANTS[mutant], law)


def test_every_law_names_a_mutant_and_every_mutant_is_named() -> None:
    assert [law for law in LAWS if not named(law)] == []
    assert {mutant for law in LAWS for mutant in named(law)} == set(MUTANTS)
