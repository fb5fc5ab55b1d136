"""The Typer application: its commands, one file each."""

from __future__ import annotations

import typer

from langchain_accel.cli.bench import bench
from langchain_accel.cli.chat import chat
from langchain_accel.cli.console import Command
from langchain_accel.cli.doctor import doctor
from langchain_accel.cli.export import export
from langchain_accel.cli.generate import generate
from langchain_accel.cli.plan import plan

app = typer.Typer(
    name="langchain-accel",
    help="Language models on the accelerator you own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=Command)(generate)
app.command(cls=Command)(chat)
app.command(cls=Command)(doctor)
app.command(cls=Command)(plan)
app.command(cls=Command)(export)
app.command(cls=Command)(bench)


@app.callback()
def _root() -> None:
    """Language models on the accelerator you own."""
