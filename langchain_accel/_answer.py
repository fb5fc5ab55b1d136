"""What LangChain gets to see of an answer: the same for a piece of a stream and for a whole answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessageChunk, message_chunk_to_message
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_accel._output import OutputSplitter, Piece, ReasoningPiece, TextPiece, ToolCallPiece
from langchain_accel.runtime.batch import Job
from langchain_accel.runtime.checkpoint import Checkpoint
from langchain_accel.runtime.request import Finish, TokenLogprob
from langchain_accel.runtime.stream import Completion

PROVIDER = "langchain-accel"


@dataclass
class AnswerReader:
    """Turns the text of one answer into LangChain's chunks, in order.

    Attributes:
        model: name of the model, as the user gave it.
        checkpoint: turns tokens of log-probabilities into text.
        splitter: cuts text, reasoning and tool calls apart; None where everything is text.
    """

    model: str
    checkpoint: Checkpoint
    splitter: OutputSplitter | None
    _called: bool = field(default=False, init=False)

    def read(
        self, text: str, logprobs: Sequence[TokenLogprob] = (), finish: Finish | None = None
    ) -> ChatGenerationChunk | None:
        """Return the chunk that a further piece of the answer makes, or None where it shows nothing yet."""
        pieces = self._pieces(text, ended=finish is not None)
        if not (pieces or logprobs or finish):
            return None
        calls = [_call_chunk(piece) for piece in pieces if isinstance(piece, ToolCallPiece)]
        reasoning = "".join(piece.text for piece in pieces if isinstance(piece, ReasoningPiece))
        self._called = self._called or bool(calls)
        message = AIMessageChunk(
            content="".join(piece.text for piece in pieces if isinstance(piece, TextPiece)),
            tool_call_chunks=calls,
            additional_kwargs={"reasoning_content": reasoning} if reasoning else {},
        )
        info: dict[str, Any] = {}
        if logprobs:
            info["logprobs"] = {"content": [self.checkpoint.describe(entry) for entry in logprobs]}
        if finish is not None:
            reason = "tool_calls" if self._called and finish.reason == "stop" else finish.reason
            info |= {"finish_reason": reason, "model_name": self.model}
            message.usage_metadata = usage(finish)
            message.response_metadata = {"model_provider": PROVIDER}
            message.chunk_position = "last"
        return ChatGenerationChunk(message=message, generation_info=info or None)

    def whole(self, completion: Completion) -> ChatGeneration:
        """Return a whole answer: the fold of its stream."""
        chunk = self.read(completion.text, completion.logprobs, completion.finish)
        assert chunk is not None, "an answer that has finished has something to show"
        # An AIMessageChunk reads its tool calls when it is made complete.
        message = message_chunk_to_message(AIMessageChunk(content="") + chunk.message)
        return ChatGeneration(message=message, generation_info=chunk.generation_info)

    def _pieces(self, text: str, *, ended: bool) -> list[Piece]:
        if self.splitter is None:
            return [TextPiece(text)] if text else []
        return [*self.splitter.push(text), *(self.splitter.finish() if ended else [])]


@dataclass(frozen=True)
class Ask:
    """One call, ready for the engine: a job per answer asked for, and a reader for each answer."""

    jobs: list[Job]
    reader: Callable[[], AnswerReader]

    def result(self, completions: Sequence[Completion]) -> ChatResult:
        """Return the answers as LangChain's result."""
        generations = [self.reader().whole(completion) for completion in completions]
        return ChatResult(generations=list(generations), llm_output={"model_name": self.reader().model})


def usage(finish: Finish) -> UsageMetadata:
    """Return what an answer took, in LangChain's terms."""
    return UsageMetadata(
        input_tokens=finish.prompt_tokens,
        output_tokens=finish.completion_tokens,
        total_tokens=finish.prompt_tokens + finish.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=finish.reused_tokens),
    )


def _call_chunk(piece: ToolCallPiece) -> ToolCallChunk:
    return tool_call_chunk(name=piece.name, args=piece.arguments, id=piece.id, index=piece.index)
