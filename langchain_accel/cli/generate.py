"""`langchain-accel generate`: complete prompts, or a whole dataset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from langchain_accel.cli import generation, long_run, models, options
from langchain_accel.cli.completion import Prompt
from langchain_accel.cli.console import note, reported, table, write_json
from langchain_accel.runtime.progress import bar

INPUT = "Prompts"


def generate(
    *,
    model: options.Model,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be repeated.", rich_help_panel=INPUT)
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Text file with a prompt per line.", rich_help_panel=INPUT)] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="jsonl, csv or parquet file, or the hub id of a dataset; needs --out; can be resumed.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    column: Annotated[
        str, typer.Option(help="Column of the dataset with the prompts.", rich_help_panel=INPUT)
    ] = "text",
    split: Annotated[str, typer.Option(help="Split of a hub id.", rich_help_panel=INPUT)] = "train",
    out: Annotated[
        Path | None, typer.Option(help="jsonl file for the results of --dataset.", rich_help_panel=options.OUTPUT)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.", rich_help_panel=INPUT)] = 100,
    max_input_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest prompt, in tokens; longer ones are refused.", rich_help_panel=INPUT),
    ] = None,
    truncate: Annotated[
        bool,
        typer.Option(
            "--truncate", help="Cut to the first --max-input-tokens instead, and say so.", rich_help_panel=INPUT
        ),
    ] = False,
    device: options.Device = options.DeviceName.xeon,
    revision: options.Revision = None,
    rows: options.Rows = 8,
    max_len: options.MaxLen = 2048,
    dtype: options.Dtype = "auto",
    tensor_parallel_size: options.Ranks = 1,
    replicas: options.Replicas = 1,
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
    iterations: Annotated[
        int,
        typer.Option(min=1, help="Answer so many times, for the timing; shown once.", rich_help_panel=options.OUTPUT),
    ] = 1,
    as_json: options.Json = False,
) -> None:
    """Complete prompts: given here, by file, by standard input (one prompt), or a whole dataset to a file."""
    _refuse_what_does_not_go_together(
        prompt, file, dataset, out, max_input_tokens, truncate=truncate, iterations=iterations
    )
    with reported(as_json=as_json):
        texts = [] if dataset else _texts(prompt, file)
        llm = models.llm(
            device.value,
            model=model,
            revision=revision,
            rows=rows,
            max_len=max_len,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size,
            replicas=replicas,
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
        with closing(models.load(llm, bar())) as loaded:
            if dataset is not None and out is not None:
                what = long_run.Input(dataset, column, max_input_tokens, truncate, split)
                _dataset(loaded, what, out, as_json=as_json)
            else:
                prompts = generation.prepared(loaded, texts, max_input_tokens, truncate=truncate)
                _prompts(loaded, prompts, iterations, as_json=as_json)


def _refuse_what_does_not_go_together(
    prompt: list[str] | None,
    file: Path | None,
    dataset: str | None,
    out: Path | None,
    max_input_tokens: int | None,
    *,
    truncate: bool,
    iterations: int,
) -> None:
    problem = ""
    if sum(bool(source) for source in (prompt, file, dataset)) > 1:
        problem = "give only one of --prompt, --file and --dataset"
    elif (dataset is None) != (out is None):
        problem = "--dataset and --out go together: results of a dataset are written to a file"
    elif dataset is not None and iterations > 1:
        problem = "--iterations repeats --prompt or --file; a dataset is answered once"
    elif truncate and max_input_tokens is None:
        problem = "--truncate needs --max-input-tokens: how much of a prompt is to be kept?"
    if problem:
        raise typer.BadParameter(problem)


def _texts(prompt: list[str] | None, file: Path | None) -> list[str]:
    if prompt:
        return prompt
    if file is not None:
        if found := generation.lines(file):
            return found
        msg = f"{file} holds no prompt"
        raise typer.BadParameter(msg)
    if sys.stdin.isatty():
        msg = "give a prompt: --prompt, --file, --dataset, or text on standard input"
        raise typer.BadParameter(msg)
    if text := sys.stdin.read():
        return [text]
    msg = "standard input is empty: give a prompt by --prompt, --file or --dataset"
    raise typer.BadParameter(msg)


def _prompts(loaded: models.Loaded, prompts: Sequence[Prompt], iterations: int, *, as_json: bool) -> None:
    """Answer prompts once and show the answers, then as often again as was asked for the timing."""
    for one in prompts:
        if one.cut:
            note(f"prompt {one.index}: the last {one.cut} of {one.cut + len(one.tokens)} tokens were cut", "yellow")
    timing, results = generation.Timing(loaded), []
    if len(prompts) == 1 and not as_json:
        done = generation.streamed(loaded, prompts[0], lambda text: typer.echo(text, nl=False))
        typer.echo()
        results.append(long_run.record(prompts[0], done))
    else:
        for one, done in generation.answers(loaded, prompts):
            results.append(long_run.record(one, done))
            if not as_json:
                typer.echo(f"{'' if one.index == 0 else chr(10)}[{one.index}] {one.text}\n{done.text}")
    timing.lap(_tokens(results))
    for _ in range(iterations - 1):
        timing.lap(sum(done.finish.completion_tokens for _, done in generation.answers(loaded, prompts)))
    if as_json:
        write_json({"results": results, "timing": timing.report()})
    else:
        _timed(timing.report())


def _dataset(loaded: models.Loaded, what: long_run.Input, out: Path, *, as_json: bool) -> None:
    """Answer a dataset, with a progress bar where standard error is a terminal."""
    from rich.console import Console

    timing, console = generation.Timing(loaded), Console(stderr=True)
    with Progress(console=console, disable=as_json or not console.is_terminal) as progress:
        task = progress.add_task("prompts", total=None)
        outcome = long_run.answer(
            loaded, what, out, lambda done, total: progress.update(task, completed=done, total=total)
        )
    timing.lap(outcome.output_tokens)
    counts = {"prompts": outcome.prompts, "resumed_at": outcome.resumed_at, "prompts_cut": outcome.cut}
    if as_json:
        write_json({**counts, "out": str(out), "timing": timing.report()})
        return
    if outcome.resumed_at:
        note(f"{outcome.resumed_at} of {outcome.prompts} results were there already")
    if outcome.cut:
        note(f"{outcome.cut} prompts were cut to {what.max_input_tokens} tokens; see cut_tokens in {out}", "yellow")
    note(f"{outcome.prompts} results in {out}")
    _timed(timing.report())


def _tokens(results: Sequence[dict[str, Any]]) -> int:
    return sum(result["completion_tokens"] for result in results)


def _timed(report: dict[str, Any]) -> None:
    """Show the timing for people."""
    words = {
        "load": f"{report['load_seconds']:.2f} s",
        "warm-up": f"{report['warm_up_seconds']:.2f} s",
        "first token": f"{report['first_token_p50_seconds']:.3f} s",
        "generation": f"{report['generate_seconds']:.2f} s",
        "tokens": str(report["output_tokens"]),
        "tokens/s": f"{report['tokens_per_second']:.1f}",
    }
    if laps := report.get("iterations_tokens_per_second"):
        words["each iteration"] = ", ".join(f"{lap:.1f}" for lap in laps)
    table("", list(words.items()))
