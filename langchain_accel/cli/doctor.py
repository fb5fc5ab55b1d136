"""`langchain-accel doctor`: what is here, what is missing, and whether it runs."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from langchain_accel._version import __version__
from langchain_accel.cli import inventory, options
from langchain_accel.cli.console import FAILED, note, table, write_json

SMOKE_TOKENS = 20
LIBRARIES = ("langchain-core", "transformers", "llguidance", "numpy")


def doctor(
    *,
    device: Annotated[
        options.DeviceName | None, typer.Option("--device", "-d", help="Look at this device only.", show_default=False)
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Make 20 tokens on --device with --model.")] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Folder or hub id, for --run.")] = None,
    max_len: Annotated[int, typer.Option(min=2, help="Tokens of prompt and answer together, for --run.")] = 128,
    limit: Annotated[float, typer.Option(min=1, help="Seconds --run may take; compiling a model takes long.")] = 3600,
    as_json: options.Json = False,
) -> None:
    """Say which accelerators and software are here and what is missing. Exit code 1: nothing asked for is ready."""
    if run and (device is None or model is None):
        msg = "--run needs --device and --model: what is to run, and on what?"
        raise typer.BadParameter(msg)
    reports = [inventory.report(device.value)] if device else inventory.look()
    smoke = smoke_test(device.value, model, max_len, limit) if run and device and model else None
    ready = [report for report in reports if report.ready and (device or report.device != "reference")]
    failed = not ready or (smoke is not None and "error" in smoke)
    if as_json:
        found = [{**asdict(report), "ready": report.ready} for report in reports]
        write_json({"versions": versions(), "devices": found, **({"run": smoke} if smoke else {})})
    else:
        _show(reports, smoke)
    if failed:
        raise typer.Exit(FAILED)


def versions() -> dict[str, str | None]:
    """Return the versions of Python, this package and the libraries it stands on."""
    ours = {"python": platform.python_version(), "langchain-accel": __version__}
    return {**ours, **{name: inventory.installed(name) for name in LIBRARIES}}


def smoke_test(device: str, model: str, max_len: int, limit: float) -> dict[str, Any]:
    """Generate 20 tokens in a process of its own, which a vendor's stack may end without ending this one.

    Returns:
        `results` and `timing` as `generate --json` writes them, or `error` with `type` and `message`.
    """
    command = [sys.executable, "-m", "langchain_accel.cli", "generate", "--device", device, "--model", model, "--json"]
    asked = ["--prompt", "Hello", "--max-new-tokens", str(SMOKE_TOKENS), "--ignore-eos", "--max-len", str(max_len)]
    try:
        done = subprocess.run(  # noqa: S603 - this package, in this interpreter
            [*command, *asked, "--rows", "1"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return {"error": {"type": "Timeout", "message": f"no answer within {limit:g} s: raise --limit"}}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = done.stderr.strip()[-500:]
        return {"error": {"type": "Crash", "message": f"the process ended with code {done.returncode}: {last}"}}
    if "error" in answer:
        return {"error": answer["error"]}
    made = answer["results"][0]["completion_tokens"]
    if made != SMOKE_TOKENS:
        return {"error": {"type": "WrongCount", "message": f"{made} tokens came instead of {SMOKE_TOKENS}"}}
    return answer


def _show(reports: list[inventory.Report], smoke: dict[str, Any] | None) -> None:
    note(", ".join(f"{name} {number or 'is missing'}" for name, number in versions().items()), style="")
    rows = []
    for report in reports:
        memory = "" if report.memory_bytes is None else f"; {report.memory_bytes / 2**30:.1f} GiB available"
        driver = f"; driver {report.driver}" if report.driver else ""
        parts = [f"{part.requirement}: {part.installed or 'missing'}" for part in report.parts]
        rows.append(
            (
                report.device,
                f"{report.hardware or 'none'}{memory}{driver}",
                "\n".join(parts) or "nothing needed",
                "\n".join(report.missing) or "ready",
            )
        )
    table("", rows, ("device", "hardware", "software", "missing"))
    if smoke is not None and "error" in smoke:
        note(f"--run failed: {smoke['error']['type']}: {smoke['error']['message']}", "bold red")
    elif smoke is not None:
        speed = smoke["timing"]["tokens_per_second"]
        note(f"--run: {SMOKE_TOKENS} tokens made, {speed:.1f} tokens/s", "bold green")
