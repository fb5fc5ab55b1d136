"""`langchain-accel export`: compile ahead of time, so that a service starts fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from langchain_accel.cli import exporting, models, options
from langchain_accel.cli.console import note, reported, write_json
from langchain_accel.runtime.progress import bar


def export(
    *,
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder to write; absent or empty.", rich_help_panel=options.OUTPUT)],
    device: options.Device = options.DeviceName.inferentia,
    revision: options.Revision = None,
    rows: options.Rows = 8,
    max_len: options.MaxLen = 2048,
    dtype: options.Dtype = "auto",
    tensor_parallel_size: options.Ranks = 1,
    device_option: options.DeviceOption = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(help="Upload the folder to this hub id, weights included.", rich_help_panel=options.OUTPUT),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Compile a model for its shapes once, into a folder that serves as --model wherever the same is asked for."""
    with reported(as_json=as_json):
        llm = models.llm(
            device.value,
            model=model,
            revision=revision,
            rows=rows,
            max_len=max_len,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size,
            options=options.settings(device_option),
        )
        plan = llm._plan(None)  # noqa: SLF001  the private part of our own model class
        folder = exporting.export(plan, out, push_to_hub=push_to_hub, progress=bar())
    if as_json:
        write_json({"folder": str(folder), "pushed_to": push_to_hub})
    else:
        typer.echo(folder)
        if push_to_hub is not None:
            note(f"uploaded to {push_to_hub}")
