"""One request: what was asked, where it stands, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

from langchain_accel.errors import InvalidRequest
from langchain_accel.runtime.drafts import NO_DRAFT

if TYPE_CHECKING:
    from langchain_accel.devices.base import IntArray
    from langchain_accel.runtime.drafts import Drafter
    from langchain_accel.runtime.sampling import Sampler
    from langchain_accel.runtime.stream import Mailbox
    from langchain_accel.runtime.text import Text

FinishReason = Literal["stop", "length"]


class State(Enum):
    """Where a request stands; it only moves downwards, except that a request waits only once."""

    WAITING = auto()
    """In the queue, without a row."""
    PREFILL = auto()
    """Owns a row; several known tokens are not yet in the KV cache: of its prompt, or dictated by a grammar."""
    DECODE = auto()
    """Owns a row; one token a step."""
    DONE = auto()
    """Finished, aborted or failed; owns nothing."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop. The default is greedy.

    Attributes:
        max_tokens: longest answer in tokens; `None` means as far as the row reaches.
        min_tokens: end-of-sequence, stop tokens and stop strings are not honoured before this many tokens.
        temperature: 0 is greedy (exact argmax); above, logits are divided by it.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches `top_p`; 1 keeps all.
        min_p: drop tokens less probable than `min_p` times the most probable one; 0 drops none.
        repetition_penalty: logits of tokens in prompt or answer are divided by it where positive, multiplied where
            negative (Keskar et al. 2019, arXiv:1909.05858; transformers' `RepetitionPenaltyLogitsProcessor`).
        presence_penalty: subtracted once from the logit of every token in the answer so far (OpenAI's definition).
        frequency_penalty: subtracted once per occurrence in the answer so far (OpenAI's definition).
        logit_bias: added to the logit of each token id.
        seed: makes sampling repeatable, whatever else runs in the same batch; `None` draws fresh entropy.
        logprobs: `None` for none, else how many alternatives to report beside the chosen token (0 or more),
            as natural logarithms of the model's own distribution, before penalties, bias and temperature.
        stop: strings that end the answer; removed from it.
        stop_token_ids: token ids that end the answer, beside the model's end-of-sequence tokens; removed from it.
        ignore_eos: treat the model's end-of-sequence tokens as ordinary tokens.
        prompt_lookup: let the engine guess tokens that the answer may quote from its prompt and check several in a
            step, where the device can; the answer is the same.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    prompt_lookup: bool = True

    def __post_init__(self) -> None:
        """Refuse settings out of range.

        Raises:
            InvalidRequest: names the setting, its value and the range.
        """
        checks = (
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1, or None"),
            ("min_tokens", self.min_tokens >= 0, "at least 0"),
            ("temperature", 0 <= self.temperature < float("inf"), "a number from 0 up"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (off) to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0; 1 is off"),
            ("presence_penalty", abs(self.presence_penalty) < float("inf"), "a finite number"),
            ("frequency_penalty", abs(self.frequency_penalty) < float("inf"), "a finite number"),
            ("seed", self.seed is None or self.seed >= 0, "None or a whole number from 0 up"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "None or 0 and more"),
            ("stop", isinstance(self.stop, tuple) and all(self.stop), "a tuple of non-empty strings"),
        )
        for name, fits, allowed in checks:
            if not fits:
                msg = f"{name} must be {allowed}, got {getattr(self, name)!r}"
                raise InvalidRequest(msg)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            msg = f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens})"
            raise InvalidRequest(msg)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one emitted token and of its most probable alternatives."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """How a request ended.

    Attributes:
        reason: `"stop"` (end of sequence, stop token, stop string or a finished grammar) or `"length"`.
        matched: the stop string or token id that ended it, where one did.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens computed for the answer, an end-of-sequence or stop token included.
        reused_tokens: prompt tokens taken from the KV cache instead of being computed.
        queued_seconds: from submission until a row was free.
        first_token_seconds: from submission until the first token was chosen.
        seconds: from submission until the end.
    """

    reason: FinishReason
    matched: str | int | None
    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int
    queued_seconds: float
    first_token_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step adds to an answer: text that is safe to show, its tokens, and at the end how it finished."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None


@dataclass(slots=True, eq=False)
class Request:
    """One request inside the engine. Only the engine's thread changes it, `aborted` apart.

    Attributes:
        prompt: `[P]` token ids.
        limit: most tokens the answer may have: `max_tokens`, or fewer where the row ends.
        sampler: chooses tokens; holds history, random generator and constraint.
        text: turns tokens into text that is safe to show.
        mailbox: where deltas go.
        submitted: time of submission, in seconds of `time.perf_counter`.
        aborted: set from any thread; honoured before the next step.
        row: its row of the KV arena while it is in PREFILL or DECODE.
        computed: columns of the row that hold its tokens.
        reused: prompt tokens found in the KV cache at admission.
        drafter: proposes how the answer goes on; `None` where the device checks no drafts, or none are wanted.
        draft: what it proposes now.
        output: tokens chosen so far.
        started: when it got its row.
        first_token: when its first token was chosen.
    """

    prompt: IntArray
    params: SamplingParams
    limit: int
    sampler: Sampler
    text: Text
    mailbox: Mailbox
    submitted: float
    state: State = State.WAITING
    aborted: bool = False
    row: int = -1
    computed: int = 0
    reused: int = 0
    drafter: Drafter | None = None
    draft: IntArray = field(default_factory=lambda: NO_DRAFT)
    output: list[int] = field(default_factory=list)
    started: float = 0.0
    first_token: float = 0.0

    @property
    def remaining(self) -> int:
        """Tokens known but not yet in the KV cache: of the prompt, or chosen and dictated ones of the answer."""
        return len(self.prompt) + len(self.output) - self.computed

    def upcoming(self, count: int) -> IntArray:
        """Return the next tokens to compute, at most `count`."""
        done = self.computed - len(self.prompt)
        if done < 0:
            return self.prompt[self.computed : self.computed + count]
        return np.array(self.output[done : done + count], np.int64)

    def redraft(self) -> None:
        """Draft how the answer may go on from where it stands."""
        drafter = self.drafter if self.state is State.DECODE else None
        self.draft = drafter.propose(self.output) if drafter else NO_DRAFT

    @property
    def remembered(self) -> IntArray:
        """Tokens whose keys and values stand in its row."""
        return np.concatenate([self.prompt, np.asarray(self.output, np.int64)])[: self.computed]
