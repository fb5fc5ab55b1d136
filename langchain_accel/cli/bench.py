"""`langchain-accel bench`: this machine's speed, beside that of what else is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from langchain_accel.cli import measuring, models, options, peers
from langchain_accel.cli.console import note, reported, table, write_json
from langchain_accel.cli.doctor import versions
from langchain_accel.cli.workloads import Answer, Workload, workloads
from langchain_accel.errors import PlanRejected
from langchain_accel.runtime.progress import bar

BENCH = "Measurement"


def bench(
    *,
    model: options.Model,
    device: options.Device = options.DeviceName.xeon,
    revision: options.Revision = None,
    rows: options.Rows = 8,
    max_len: options.MaxLen = 1024,
    dtype: options.Dtype = "auto",
    tensor_parallel_size: options.Ranks = 1,
    device_option: options.DeviceOption = None,
    trust_remote_code: options.TrustRemoteCode = False,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            help="latency, throughput, rag or session; may be repeated. All, if left out.", rich_help_panel=BENCH
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Counted repeats after one to warm up.", rich_help_panel=BENCH)
    ] = 3,
    no_peers: Annotated[
        bool, typer.Option("--no-peers", help="Measure this package alone.", rich_help_panel=BENCH)
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Also write every measurement to this json file.", rich_help_panel=options.OUTPUT),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw tokens/s to this png, svg or pdf.", rich_help_panel=options.OUTPUT)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure latency, throughput, RAG and a session on this machine, against transformers where it is installed."""
    with reported(as_json=as_json):
        if plot is not None:
            measuring.check_plot()
        llm = models.llm(
            device.value,
            model=model,
            revision=revision,
            rows=rows,
            max_len=max_len,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size,
            options=options.settings(device_option),
            trust_remote_code=trust_remote_code,
        )
        with closing(models.load(llm, bar())) as loaded:
            vocab_size = loaded.lease.engine.spec.vocab_size
            names = _chosen(workloads(vocab_size), workload, max_len)
            answers: dict[str, Answer] = {peers.OURS: peers.ours(loaded.lease.engine)}
            skipped = {} if no_peers else _load_peers(answers, loaded)
            for name, reason in skipped.items():
                note(f"{name} is left out: {reason}", "yellow")

            def chosen(repeat: int) -> list[Workload]:
                return [work for work in workloads(vocab_size, repeat) if work.name in names]

            measured = measuring.compare(answers, chosen, repeats, note)
        said = _said(measured, loaded, skipped)
        if out is not None:
            out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        if plot is not None:
            measuring.plot(measured, plot, f"{loaded.lease.checkpoint.folder.name}, {said['dtype']}, {device.value}")
    if as_json:
        write_json(said)
    else:
        _show(said)


def _chosen(known: Sequence[Workload], asked: Sequence[str] | None, max_len: int) -> set[str]:
    """Return the names of the workloads to measure.

    Raises:
        PlanRejected: one of them does not fit `max_len`.
    """
    if unknown := set(asked or ()) - {work.name for work in known}:
        msg = f"no workload is called {', '.join(unknown)}: choose from {', '.join(work.name for work in known)}"
        raise typer.BadParameter(msg)
    chosen = [work for work in known if not asked or work.name in asked]
    if long := [f"{work.name} {work.longest}" for work in chosen if work.longest > max_len]:
        msg = (
            f"workloads need more tokens than --max-len {max_len}: {', '.join(long)}; raise it, or choose by --workload"
        )
        raise PlanRejected(msg)
    return {work.name for work in chosen}


def _load_peers(answers: dict[str, Answer], loaded: models.Loaded) -> dict[str, str]:
    """Load what else can answer on this machine's processors; return who was left out, and why."""
    absent = peers.absent()
    skipped = {}
    for name, (module, load) in peers.PEERS.items():
        if loaded.model.device not in ("xeon", "reference"):
            skipped[name] = f"it would run on this machine's processors, and the model runs on {loaded.model.device}"
        elif name in absent:
            skipped[name] = f"{module} is not installed"
        else:
            note(f"loading {name}")
            folder, trusted = loaded.lease.checkpoint.folder, loaded.model.trust_remote_code
            answers[name] = load(folder, _dtype(loaded), trust_remote_code=trusted)
    return skipped


def _dtype(loaded: models.Loaded) -> str:
    """Return what the model is computed in, for peers to compute in the same."""
    from langchain_accel.devices import xeon

    return xeon.dtype_of(loaded.model._plan(None)) if loaded.model.device == "xeon" else "float32"  # noqa: SLF001


def _said(measured: Sequence[measuring.Measured], loaded: models.Loaded, skipped: dict[str, str]) -> dict[str, Any]:
    """Return everything that was measured, for machines."""
    return {
        "model": str(loaded.lease.checkpoint.folder),
        "device": loaded.model.device,
        "dtype": _dtype(loaded),
        "rows": loaded.model.rows,
        "tensor_parallel_size": loaded.model.tensor_parallel_size,
        "load_seconds": loaded.load_seconds,
        "warm_up_seconds": loaded.warm_up_seconds,
        "versions": versions(),
        "skipped": skipped,
        "measured": [
            {
                **asdict(one),
                "tokens_per_second": one.tokens_per_second,
                "wall_ratio": measuring.ratio(measured, one, peers.OURS),
                "cpu_ratio": measuring.ratio(measured, one, peers.OURS, cpu=True),
            }
            for one in measured
        ],
    }


def _show(said: dict[str, Any]) -> None:
    rows = [
        (
            one["workload"],
            one["peer"],
            f"{median(one['wall']):.3f}",
            f"{median(one['cpu']):.3f}",
            f"{one['tokens_per_second']:.1f}",
            f"{one['wall_ratio']:.2f}x",
            f"{one['cpu_ratio']:.2f}x",
        )
        for one in said["measured"]
    ]
    headings = ("workload", "peer", "seconds", "CPU seconds", "tokens/s", "time", "CPU time")
    table(f"{said['dtype']} on {said['device']}; times are medians, ratios are to {peers.OURS}", rows, headings)
