"""Choosing the next token: penalties, bias, temperature, top-k, top-p, min-p, and log-probabilities.

The definitions are those of transformers' `generation/logits_process.py` in its order, OpenAI's for the presence and
frequency penalties. One `Sampler` holds what a request carries from token to token; `choose` serves a whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from langchain_accel.devices.base import IntArray, Logits
from langchain_accel.errors import AccelError, InvalidRequest
from langchain_accel.runtime.request import SamplingParams, TokenLogprob
from langchain_accel.runtime.warping import warp

if TYPE_CHECKING:
    from langchain_accel.runtime.constraints import Constraint

TRIES = 4
"""How many tokens a constraint may refuse before it chooses."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One chosen token, with its log-probability where the request asked for it."""

    token: int
    logprob: TokenLogprob | None = None


class History:
    """The distinct tokens of a request and how often each is in the answer; what it costs grows with them alone.

    Args:
        prompt: token ids that count as seen, but not as part of the answer.
    """

    def __init__(self, prompt: Iterable[int]) -> None:
        distinct = dict.fromkeys(prompt)
        self._place = {token: place for place, token in enumerate(distinct)}
        self._tokens: IntArray = np.fromiter(distinct, dtype=np.int64, count=len(distinct))
        self._counts: Logits = np.zeros(len(distinct), dtype=np.float32)

    def add(self, token: int) -> None:
        """Count one more occurrence of `token` in the answer."""
        place = self._place.setdefault(token, len(self._place))
        if place >= len(self._tokens):
            room = max(64, len(self._tokens))
            self._tokens = np.append(self._tokens, np.zeros(room, dtype=np.int64))
            self._counts = np.append(self._counts, np.zeros(room, dtype=np.float32))
        self._tokens[place] = token
        self._counts[place] += 1

    def seen(self) -> tuple[IntArray, Logits]:
        """Return the distinct token ids `[N]`, and their occurrences in the answer `[N]`."""
        size = len(self._place)
        return self._tokens[:size], self._counts[:size]


class Sampler:
    """Sampling state of one request: history, random generator and constraint. One thread uses it at a time.

    Args:
        params: how to choose.
        prompt: token ids of the prompt; read by the repetition penalty alone.
        stop_ids: ids that end the answer: the model's end-of-sequence ids unless `params.ignore_eos`, and
            `params.stop_token_ids` (added here in any case). Forbidden until `params.min_tokens` are out.
        vocab_size: width of the logits.
        constraint: grammar the answer must follow; this sampler masks with it and advances it.

    Attributes:
        stop_ids: ids that end the answer.

    Raises:
        InvalidRequest: a token id of the request is outside the vocabulary, or a bias is not a number.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        stop_ids: frozenset[int],
        vocab_size: int,
        constraint: Constraint | None = None,
    ) -> None:
        _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)
        _check_ids("logit_bias", params.logit_bias, vocab_size)
        # Written so that NaN is refused too; minus infinity is a fair way to forbid a token.
        if not all(bias < math.inf for bias in params.logit_bias.values()):
            msg = f"logit_bias must hold numbers below infinity, got {dict(params.logit_bias)}"
            raise InvalidRequest(msg)
        self._params = params
        self._constraint = constraint
        self._generated = 0
        self.stop_ids = stop_ids.union(params.stop_token_ids)
        stops = sorted(token for token in self.stop_ids if 0 <= token < vocab_size)
        self._stops: IntArray = np.array(stops, dtype=np.int64)
        self._biased: IntArray = np.array(list(params.logit_bias), dtype=np.int64)
        self._bias: Logits = np.array(list(params.logit_bias.values()), dtype=np.float32)
        repeats = params.repetition_penalty != 1
        _check_ids("the prompt", prompt if repeats else (), vocab_size)
        penalised = repeats or params.presence_penalty != 0 or params.frequency_penalty != 0
        self._history = History(prompt if repeats else ()) if penalised else None
        self._random = np.random.Generator(np.random.PCG64(params.seed)) if params.temperature > 0 else None
        self._processed = constraint is not None or penalised or len(self._biased) > 0
        self._simple = not self._processed and self._random is None and params.logprobs is None

    @property
    def plain(self) -> bool:
        """Whether the next token is the raw argmax and nothing else is asked, so that a batch argmax may serve it."""
        return self._simple and not self._too_short

    @property
    def finished(self) -> bool:
        """Whether the constraint is satisfied and allows nothing more."""
        return self._constraint is not None and self._constraint.finished

    @property
    def closed_early(self) -> bool:
        """Whether the constraint had to close the answer because its limit was near."""
        return self._constraint is not None and self._constraint.closed_early

    @property
    def _too_short(self) -> bool:
        return self._generated < self._params.min_tokens and len(self._stops) > 0

    def choose(self, logits: Logits) -> Choice:
        """Choose the next token; the caller then tells it to `accept`.

        Args:
            logits: `[vocab_size]` float32, the model's own; not modified.

        Raises:
            InvalidRequest: grammar, `min_tokens` and `logit_bias` together forbid every token.
            AccelError: the largest logit is not a finite number.
        """
        scores = self._process(logits) if self._processed or self._too_short else logits
        token = self._pick(scores, logits)
        count = self._params.logprobs
        return Choice(token, None if count is None else _logprob(logits, token, count))

    def accept(self, token: int) -> None:
        """Take `token` into the answer: counts, penalties and the constraint move on.

        Raises:
            AccelError: the constraint does not allow `token`.
        """
        self._generated += 1
        if self._history is not None:
            self._history.add(token)
        if self._constraint is not None:
            self._constraint.accept(token)

    def forced(self) -> list[int]:
        """Return the tokens that the constraint dictates next; the caller may `accept` them all without a choice.

        Empty where log-probabilities are asked for, because they need the model's logits, and up to a stop id.
        """
        if self._constraint is None or self._params.logprobs is not None:
            return []
        return list(takewhile(lambda token: token not in self.stop_ids, self._constraint.forced()))

    def _pick(self, scores: Logits, logits: Logits) -> int:
        """Choose among the processed `scores` of `logits`; under a constraint only what it admits.

        A constraint that must close wins over everything else, bias and `min_tokens` included.
        """
        for _ in range(TRIES):
            best = int(scores.argmax())  # numpy ranks NaN above every number, so one look finds any
            if scores[best] == -math.inf and self._closing is not None and math.isfinite(logits.max()):
                break
            _require_usable(scores[best], logits)
            token = best if self._random is None else self._draw(scores, float(scores[best]), self._random)
            if self._constraint is None or self._constraint.admits(token):
                return token
            scores[token] = -np.inf
        assert self._closing is not None  # a constraint without a limit admits every token
        return self._closing

    @property
    def _closing(self) -> int | None:
        return None if self._constraint is None else self._constraint.closing()

    def _process(self, logits: Logits) -> Logits:
        """Return a copy of `logits` with everything applied that both a greedy and a drawn answer need."""
        params, scores = self._params, np.array(logits, dtype=np.float32)
        if self._constraint is not None:
            self._constraint.mask(scores)
        if self._too_short:
            scores[self._stops] = -np.inf
        if self._history is not None:
            tokens, counts = self._history.seen()
            if params.repetition_penalty != 1:
                penalty, values = np.float32(params.repetition_penalty), scores[tokens]
                scores[tokens] = np.where(values < 0, values * penalty, values / penalty)
            if params.presence_penalty != 0 or params.frequency_penalty != 0:
                scores[tokens] -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        if len(self._biased):
            scores[self._biased] += self._bias
        return scores

    def _draw(self, scores: Logits, best: float, random: np.random.Generator) -> int:
        tokens, weights = warp(scores, best, self._params)
        reached = weights.cumsum()
        # 1 - random() is in (0, 1]: the first sum that reaches it never belongs to a token of weight zero.
        return int(tokens[reached.searchsorted((1 - random.random()) * reached[-1])])


def _logprob(logits: Logits, token: int, count: int) -> TokenLogprob:
    """Return the natural logarithm of the raw probability of `token`, and of the `count` most probable tokens."""
    exact = logits.astype(np.float64)
    peak = exact.max()
    total = peak + math.log(np.exp(exact - peak).sum())
    size = min(count, len(exact))
    if size == 0:
        return TokenLogprob(token, float(exact[token] - total))
    edge = np.partition(logits, -size)[-size]
    tokens = np.flatnonzero(logits >= edge)  # ascending ids, so that a stable sort leaves ties to the lower id
    tokens = tokens[np.argsort(-exact[tokens], kind="stable")][:size]
    top = tuple((int(each), float(exact[each] - total)) for each in tokens)
    return TokenLogprob(token, float(exact[token] - total), top)


def choose(logits: Logits, samplers: Sequence[Sampler]) -> list[Choice | AccelError]:
    """Choose and accept one token per row.

    Args:
        logits: `[B, vocab_size]` float32; not modified.
        samplers: the B requests the rows belong to.

    Returns:
        Per row the choice, or the error of `Sampler.choose` or `Sampler.accept`, which concerns that row alone.
    """
    plain = [sampler.plain for sampler in samplers]
    greedy: list[int] = logits.argmax(axis=1).tolist() if any(plain) else []
    choices: list[Choice | AccelError] = []
    for place, sampler in enumerate(samplers):
        row = logits[place]
        try:
            if plain[place]:
                _require_usable(row[greedy[place]], row)
                choice = Choice(greedy[place])
            else:
                choice = sampler.choose(row)
            sampler.accept(choice.token)
        except AccelError as error:
            choices.append(error)
        else:
            choices.append(choice)
    return choices


def _require_usable(best: np.float32, logits: Logits) -> None:
    """Raise where `best`, the largest processed score of a row, is not a finite number."""
    if math.isfinite(best):
        return
    if best == -math.inf and math.isfinite(logits.max()):
        msg = (
            "no token is left to choose: the grammar, min_tokens, stop_token_ids and logit_bias of this request "
            "together forbid every token of the vocabulary; loosen one of them"
        )
        raise InvalidRequest(msg)
    msg = f"the model's largest logit is {logits.max()}, and {best} after penalties and bias: not a finite number"
    raise AccelError(msg)


def _check_ids(name: str, tokens: Iterable[int], vocab_size: int) -> None:
    wrong = [token for token in tokens if not 0 <= token < vocab_size]
    if wrong:
        msg = f"{name} holds token ids outside the vocabulary 0...{vocab_size - 1}: {wrong[:8]}"
        raise InvalidRequest(msg)
