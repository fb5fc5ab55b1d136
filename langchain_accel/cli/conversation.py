"""A conversation that stays within the model's window."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, trim_messages

from langchain_accel.errors import InvalidRequest

if TYPE_CHECKING:
    from langchain_accel.chat_models import AccelChatModel


@dataclass(slots=True)
class Turn:
    """One answer, as it is being made.

    Attributes:
        text: what there is of it.
        left_out: older messages that did not fit the window and were not sent.
        tokens: tokens of the answer, once it is complete.
        first_token_seconds: from the question to the first text.
        seconds: from the question to the end, or to where it was stopped.
        finish_reason: `"stop"` or `"length"`; None while it runs, and where it was stopped early.
    """

    text: str = ""
    left_out: int = 0
    tokens: int = 0
    first_token_seconds: float = 0.0
    seconds: float = 0.0
    finish_reason: str | None = None


class Conversation:
    """What was said so far, and the model that answers.

    Attributes:
        messages: the whole history, also what no longer fits the window.
        turn: the latest answer.
    """

    def __init__(self, model: AccelChatModel, system: str | None = None) -> None:
        self._model = model
        self._system = [SystemMessage(system)] if system else []
        self.messages: list[BaseMessage] = [*self._system]
        self.turn = Turn()

    @property
    def room(self) -> int:
        """Tokens of the window that history may take; the longest answer keeps the others."""
        return max(self._model.max_len - (self._model.max_tokens or 1), 1)

    def ask(self, text: str) -> Generator[str, None, None]:
        """Yield the answer as it is made. `turn` has its figures.

        Older messages that do not fit the window are left out, oldest first; the system message stays, and so does the
        question, which is refused where it does not fit by itself. An answer that is left early (by closing this
        generator, or an interrupt) stays in the history as far as it came; a question whose answer failed does not.

        Raises:
            PromptTooLong: the question alone does not fit.
            AccelError: as `AccelChatModel.stream`.
        """
        turn = self.turn = Turn()
        asked = [*self.messages, HumanMessage(text)]
        sent = self._trimmed(asked)
        turn.left_out = len(asked) - len(sent)
        began = perf_counter()
        try:
            with closing(cast("Any", self._model.stream(sent))) as chunks:
                for chunk in chunks:
                    if chunk.text and not turn.first_token_seconds:
                        turn.first_token_seconds = perf_counter() - began
                    turn.text += chunk.text
                    turn.finish_reason = chunk.response_metadata.get("finish_reason", turn.finish_reason)
                    turn.tokens += (chunk.usage_metadata or {}).get("output_tokens", 0)
                    yield chunk.text
        except (GeneratorExit, KeyboardInterrupt):
            self._remember(asked)
            raise
        finally:
            turn.seconds = perf_counter() - began
        self._remember(asked)

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [*self._system]

    def save(self, file: Path) -> int:
        """Write the history, a message per line with `role` and `content`, and return how many there are.

        Raises:
            InvalidRequest: there is such a file already, or it cannot be written.
        """
        roles = {"system": "system", "human": "user", "ai": "assistant"}
        try:
            with file.open("x", encoding="utf-8") as out:
                for message in self.messages:
                    line = {"role": roles[message.type], "content": message.text}
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
        except FileExistsError as error:
            msg = f"{file} is there already: choose another name"
            raise InvalidRequest(msg) from error
        except (OSError, UnicodeEncodeError) as error:
            msg = f"{file} cannot be written: {error}"
            raise InvalidRequest(msg) from error
        return len(self.messages)

    def _remember(self, asked: list[BaseMessage]) -> None:
        if self.turn.text or self.turn.finish_reason:
            self.messages = [*asked, AIMessage(self.turn.text)]

    def _trimmed(self, messages: list[BaseMessage]) -> list[BaseMessage]:
        said = messages[len(self._system) :]
        place = {id(message): index for index, message in enumerate(said)}

        def count(some: list[BaseMessage]) -> int:
            """Count as the model will get them: in order (LangChain hands them over reversed), a question first.

            Many templates refuse any other order.
            """
            ordered = sorted(some, key=lambda message: place[id(message)])
            while ordered and not isinstance(ordered[0], HumanMessage):
                ordered.pop(0)
            return self._model.get_num_tokens_from_messages([*self._system, *ordered]) if ordered else 0

        kept = trim_messages(said, max_tokens=self.room, token_counter=count, strategy="last", start_on="human")
        return [*self._system, *(kept or said[-1:])]  # a question that does not fit alone is for the model to refuse
