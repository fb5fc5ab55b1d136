"""`langchain-accel chat`: talk to a model."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from langchain_accel.cli import models, options
from langchain_accel.cli.console import note, reported, write_json
from langchain_accel.cli.conversation import Conversation
from langchain_accel.errors import AccelError, DeviceLost
from langchain_accel.runtime.progress import bar

COMMANDS = "/reset forgets the conversation, /save FILE writes it, /exit leaves; Ctrl-C stops an answer"


def chat(
    *,
    model: options.Model,
    system: Annotated[str | None, typer.Option(help="System message.", rich_help_panel="Conversation")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer, in tokens.", rich_help_panel="Conversation")
    ] = 512,
    device: options.Device = options.DeviceName.xeon,
    revision: options.Revision = None,
    max_len: options.MaxLen = 2048,
    dtype: options.Dtype = "auto",
    tensor_parallel_size: options.Ranks = 1,
    device_option: options.DeviceOption = None,
    trust_remote_code: options.TrustRemoteCode = False,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    ignore_eos: options.IgnoreEos = False,
    as_json: options.Json = False,
) -> None:
    """Talk to a model: a line is a question, answers are streamed. /reset, /save FILE and /exit are commands."""
    if max_new_tokens >= max_len:
        msg = f"--max-new-tokens {max_new_tokens} leaves no room for a question in --max-len {max_len}"
        raise typer.BadParameter(msg)
    with reported(as_json=as_json):
        talker = models.chat(
            device.value,
            model=model,
            revision=revision,
            rows=1,
            max_len=max_len,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size,
            options=options.settings(device_option),
            trust_remote_code=trust_remote_code,
            max_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            stop=stop or None,
            ignore_eos=ignore_eos or None,
        )
        with closing(models.load(talker, bar())) as loaded:
            note(f"loaded in {loaded.load_seconds + loaded.warm_up_seconds:.1f} s. {COMMANDS}")
            _talk(Conversation(talker, system), as_json=as_json)


def _talk(conversation: Conversation, *, as_json: bool) -> None:
    """Read lines until `/exit` or the end of the input, and answer them."""
    while (line := _line()) is not None and line.strip() != "/exit":
        try:
            _obey(conversation, line.rstrip("\r\n"), as_json=as_json)
        except KeyboardInterrupt:  # noqa: PERF203 - between an answer and the next line
            note("stopped")
        except DeviceLost:
            raise
        except AccelError as error:
            note(f"{type(error).__name__}: {error}", "bold red")
            if as_json:
                write_json({"error": {"type": type(error).__name__, "message": str(error)}})


def _obey(conversation: Conversation, line: str, *, as_json: bool) -> None:
    """Carry out a command, or answer a question."""
    word, _, rest = line.strip().partition(" ")
    if word == "/reset":
        conversation.reset()
        note("the conversation is forgotten")
    elif word == "/save" and rest.strip():
        count = conversation.save(Path(rest.strip()).expanduser())
        note(f"{count} messages written to {rest.strip()}")
    elif word.startswith("/"):
        note(COMMANDS)
    elif word:
        _answer(conversation, line, as_json=as_json)


def _line() -> str | None:
    """Return the next line; None at the end of the input. Ctrl-C at the prompt says how to leave."""
    try:
        if sys.stdin.isatty():
            return input("> ")
        return sys.stdin.readline() or None
    except EOFError:
        return None
    except KeyboardInterrupt:
        note(f"\n{COMMANDS}")
        return ""


def _answer(conversation: Conversation, question: str, *, as_json: bool) -> None:
    """Stream one answer; an interrupt ends the answer, not the program."""
    stopped = False
    try:
        with closing(conversation.ask(question)) as pieces:
            for piece in pieces:
                if not as_json:
                    typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        stopped = True
    turn = conversation.turn
    if as_json:
        figures = {name: value for name, value in asdict(turn).items() if name != "text"}
        write_json({"role": "assistant", "content": turn.text, **figures, "stopped": stopped})
        return
    typer.echo()
    if turn.left_out:
        note(f"{turn.left_out} older messages did not fit the window and were left out", "yellow")
    if stopped:
        note(f"stopped after {turn.seconds:.1f} s")
        return
    speed = turn.tokens / max(turn.seconds, 1e-9)
    ending = "; cut at --max-new-tokens or --max-len" if turn.finish_reason == "length" else ""
    note(f"{turn.tokens} tokens, first after {turn.first_token_seconds:.2f} s, {speed:.1f} tokens/s{ending}")
