"""What the commands say beside their results: notes, errors and exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from langchain_accel.cli.older_words import modern
from langchain_accel.errors import AccelError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
"""Exit codes beside 0. `typer` itself uses 2 for options it does not understand; 130 is a shell's for Ctrl-C."""


class Command(TyperCommand):
    """A command that understands the words of older scripts."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace older words, say so on standard error, and parse what remains."""
        args, notes = modern(args)
        for line in notes:
            note(line)
        rest: list[str] = super().parse_args(ctx, args)
        return rest


def note(text: str, style: str = "dim") -> None:
    """Write a line for people to standard error."""
    _people().print(Text(text), style=style, soft_wrap=True)


def table(title: str, rows: Sequence[tuple[str, ...]], headings: Sequence[str] = ()) -> None:
    """Write a table for people to standard error."""
    grid = Table(title=title, show_header=bool(headings), title_justify="left")
    for heading in headings or rows[0]:
        grid.add_column(heading, overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    _people().print(grid)


def write_json(value: Any) -> None:
    """Write one JSON document, on one line, to standard output."""
    typer.echo(json.dumps(value, ensure_ascii=True))


@contextmanager
def reported(*, as_json: bool = False) -> Iterator[None]:
    """Turn errors into a message and an exit code; with `as_json` the message is also on standard output, as JSON."""
    try:
        yield
    except ValidationError as error:
        what = [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in error.errors()]
        _say("ValidationError", "; ".join(what), as_json=as_json)
        raise typer.Exit(MISUSED) from error
    except (AccelError, OSError) as error:
        _say(type(error).__name__, str(error), as_json=as_json)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt as error:
        _say("Interrupted", "interrupted", as_json=as_json)
        raise typer.Exit(INTERRUPTED) from error


def _say(kind: str, message: str, *, as_json: bool) -> None:
    note(f"{kind}: {message}", style="bold red")
    if as_json:
        write_json({"error": {"type": kind, "message": message}})


def _people() -> Console:
    return Console(stderr=True, highlight=False, markup=False)
