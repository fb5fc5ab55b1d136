"""`chat`: a conversation over standard input, within the window."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from langchain_accel.cli import models
from langchain_accel.cli.conversation import Conversation
from langchain_accel.errors import PromptTooLong
from tests.cli.conftest import read_jsonl
from tests.tiny_checkpoint import CHAT_TEMPLATE

# As Gemma's and Mistral's: anything but question, answer, question in turns is refused.
STRICT = (
    "{%- for message in messages if message.role != 'system' %}"
    "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}"
    "{%- endfor %}" + CHAT_TEMPLATE
)


@pytest.fixture
def talker(tiny: Path):
    model = models.chat("reference", model=str(tiny), max_len=128, max_tokens=8, chat_template=STRICT)
    yield model
    model.close()


def test_answers_are_those_of_the_library_with_the_whole_history(talker) -> None:
    """Mutant seen to fail: only the question sent."""
    conversation = Conversation(talker, "Be kind.")
    first = "".join(conversation.ask("and you?"))
    second = "".join(conversation.ask("and the sea?"))
    history = [SystemMessage("Be kind."), HumanMessage("and you?")]
    assert first == talker.invoke(history).text
    history += [AIMessage(first), HumanMessage("and the sea?")]
    assert second == talker.invoke(history).text
    assert [message.text for message in conversation.messages] == [
        "Be kind.",
        "and you?",
        first,
        "and the sea?",
        second,
    ]
    assert conversation.turn.left_out == 0
    assert conversation.turn.tokens > 0
    assert 0 < conversation.turn.first_token_seconds <= conversation.turn.seconds


def test_history_is_trimmed_to_the_window_and_said(talker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent fits beside the longest answer, starts with a question and is as long as can be.

    Mutant seen to fail: nothing trimmed.
    """
    sent: list[list] = []
    stream = type(talker).stream
    monkeypatch.setattr(type(talker), "stream", lambda self, messages: sent.append(messages) or stream(self, messages))
    conversation = Conversation(talker, "Be kind.")
    for number in range(8):
        list(conversation.ask(f"question number {number}"))
        used = talker.get_num_tokens_from_messages(sent[-1])
        assert used <= conversation.room
        assert sent[-1][0].text == "Be kind."
        assert isinstance(sent[-1][1], HumanMessage)
        assert sent[-1][-1].text == f"question number {number}"
        assert conversation.turn.left_out == 2 * number + 2 - len(sent[-1])
        if conversation.turn.left_out:
            more = [conversation.messages[0], *conversation.messages[-(len(sent[-1]) + 2) : -1]]
            assert talker.get_num_tokens_from_messages(more) > conversation.room
    assert conversation.turn.left_out > 0
    assert len(conversation.messages) == 17


def test_a_question_that_does_not_fit_is_refused_and_forgotten(talker) -> None:
    conversation = Conversation(talker)
    with pytest.raises(PromptTooLong):
        list(conversation.ask("word " * 200))
    assert conversation.messages == []
    assert list(conversation.ask("and you?"))


def test_an_answer_left_early_stays_as_far_as_it_came(talker) -> None:
    conversation = Conversation(talker)
    pieces = conversation.ask("and you?")
    text = next(piece for piece in pieces if piece)
    pieces.close()
    assert [message.text for message in conversation.messages] == ["and you?", text]
    assert conversation.turn.finish_reason is None


def test_a_conversation_over_a_pipe(shell, tmp_path: Path) -> None:
    saved = tmp_path / "talk.jsonl"
    lines = ["and you?", f"/save {saved}", f"/save {saved}", "/what", "/reset", "and you?", "/exit", "never asked"]
    done = shell("chat", "--max-new-tokens", "8", "--system", "Be kind.", "--json", stdin="\n".join(lines))
    assert done.exit_code == 0, done.stderr
    first, refused, again = map(json.loads, done.stdout.splitlines())
    assert first["content"] == again["content"] != ""
    assert first["tokens"] > 0
    assert "is there already" in refused["error"]["message"]
    assert read_jsonl(saved) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "and you?"},
        {"role": "assistant", "content": first["content"]},
    ]
    for said in ("3 messages written", "/exit leaves", "is forgotten"):
        assert said in done.stderr
    done = shell("chat", "--max-new-tokens", "8", "--system", "Be kind.", stdin="and you?\n")
    assert done.stdout == first["content"] + "\n"
    assert "tokens/s" in done.stderr


def test_no_room_for_a_question_is_misuse(shell) -> None:
    done = shell("chat", "--max-new-tokens", "128", stdin="")
    assert done.exit_code == 2
    assert "leaves no room" in done.stderr


def test_an_interrupt_stops_the_answer_and_not_the_program(tiny: Path) -> None:
    """SIGINT while an answer is written; the next question is answered. Mutant seen to fail: interrupts not caught."""
    command = ["chat", "--model", str(tiny), "--device", "reference", "--max-len", "4000"]
    answer = ["--max-new-tokens", "3900", "--ignore-eos"]
    # As on a machine without torch, which this device does not need: it starts in half the time.
    # A shell's background job, which the tests may be, is born ignoring SIGINT.
    start = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.modules['torch'] = None; "
        "from langchain_accel.cli import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", start, *command, *answer],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    ) as talk:
        assert talk.stdin
        assert talk.stdout
        for _ in range(2):
            talk.stdin.write(b"and you?\n")
            talk.stdin.flush()
            assert talk.stdout.read(20)
            talk.send_signal(signal.SIGINT)
        _, errors = talk.communicate(b"/exit\n", timeout=120)
    assert talk.returncode == 0, errors.decode()
    assert errors.count(b"stopped after") == 2, errors.decode()
