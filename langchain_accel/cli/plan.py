"""`langchain-accel plan`: what a model takes of an accelerator's memory, before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from langchain_accel.cli import models, options, planning, targets
from langchain_accel.cli.console import FAILED, note, reported, table, write_json
from langchain_accel.devices.base import Plan

_GIB = 2**30


def plan(
    *,
    model: options.Model,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            "-d",
            help=f"What to plan for: {targets.HERE} (this machine), {', '.join(targets.ACCELERATORS)}.",
            rich_help_panel=options.LOADING,
        ),
    ] = targets.HERE,
    revision: options.Revision = None,
    rows: options.Rows = 8,
    max_len: options.MaxLen = 2048,
    dtype: options.Dtype = "auto",
    tensor_parallel_size: options.Ranks = 1,
    device_option: options.DeviceOption = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Say what a model would take of each card, and the most rows and the longest rows that fit. Loads nothing."""
    with reported(as_json=as_json):
        target = targets.find(device)
        llm = models.llm(
            target.device,
            model=model,
            revision=revision,
            rows=rows,
            max_len=max_len,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size,
            options=options.settings(device_option),
            trust_remote_code=trust_remote_code,
        )
        asked = llm._plan(None)  # noqa: SLF001  the private part of our own model class
        found = planning.outlook(asked, target)
    if as_json:
        write_json({**asdict(found), "fits": found.fits, "rows": rows, "max_len": max_len, "target": device})
    else:
        _show(found, target, asked)
    if not found.fits:
        raise typer.Exit(FAILED)


def _show(found: planning.Outlook, target: targets.Target, asked: Plan) -> None:
    shared = "" if target.cards is not None or found.cards == 1 else f", shared by {found.cards} ranks"
    lines = [
        ("weights", _gib(found.weights)),
        ("KV cache", f"{_gib(found.cache)}: {asked.rows} rows x {asked.max_len} x {found.token_bytes} bytes a token"),
        ("working memory", _gib(found.working) if found.working else "part of what is kept free"),
        ("together", _gib(found.weights + found.cache + found.working)),
        ("may take", f"{_gib(found.usable)} ({target.share:.0%} of {_gib(found.memory)}{shared})"),
        ("declared shapes", "not known" if found.shapes is None else str(found.shapes)),
        ("most rows", f"{found.most_rows} at --max-len {asked.max_len}"),
        ("longest rows", f"--max-len {found.longest} at --rows {asked.rows}"),
    ]
    table(f"{found.dtype}, on each of {found.cards} {target.card}{'s' if found.cards > 1 else ''}", lines)
    note("it fits" if found.fits else "it does not fit", "bold green" if found.fits else "bold red")


def _gib(count: int) -> str:
    return f"{count / _GIB:.2f} GiB"
