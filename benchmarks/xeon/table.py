"""Tables of a run, in markdown.

python -m benchmarks.xeon.table results.json [--base ours-int8]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.xeon import figures
from benchmarks.xeon.figures import Figure, Run
from benchmarks.xeon.workloads import workload

COLUMNS = (
    "peer",
    "first token, CPU s",
    "total, CPU s",
    "decoding, tokens/CPU s",
    "total, wall s",
    "CPU time",
    "wall time",
    "same tokens",
)


def tables(results: Mapping[str, Any], base: str) -> str:
    """Return a table for each workload, and what stands around them."""
    runs, machine = results["runs"], results["machine"]
    works = list(dict.fromkeys(run["work"] for run in runs))
    repeats = max((run["repeat"] for run in runs), default=-1) + 1
    load = Figure.of([run["load_average"] for run in runs]) if runs else None
    ran = f"{results['model']}, {results['threads']} thread(s), {repeats} repeat(s), {machine['when']}"
    processor = f"{machine['cores']} core(s) with {', '.join(machine['flags'])}, load average {shown(load, 1)}"
    lines = [
        f"{ran}; {processor}.",
        f"Medians, in brackets least and most; CPU and wall time are multiples of those of `{base}`.",
        "",
        _limits(results["limits"]),
    ]
    for work in works:
        lines += ["", f"({work}) {workload(work, 0).about}", "", _row(COLUMNS), _row(["---"] * len(COLUMNS))]
        peers = [peer for peer in results["peers"] if figures.runs_of(runs, peer, work)]
        lines += [_row(_cells(runs, work, peer, base)) for peer in peers]
    lines += ["", *_shares(results)]
    lines += [f"Left out: `{peer}`: {reason}" for peer, reason in results["skipped"].items()]
    return "\n".join(lines)


def shown(figure: Figure | None, digits: int = 2, unit: str = "") -> str:
    """Return a figure as `median (least-most)`."""
    if figure is None:
        return "-"
    if figure.least == figure.most:
        return f"{figure.median:.{digits}f}{unit}"
    return f"{figure.median:.{digits}f}{unit} ({figure.least:.{digits}f}-{figure.most:.{digits}f})"


def _cells(runs: Sequence[Run], work: str, peer: str, base: str) -> list[str]:
    own = figures.runs_of(runs, peer, work)
    same = figures.agreement(runs, work, peer, base)
    return [
        f"`{peer}`",
        _sum(own, figures.first),
        _sum(own, figures.total),
        _sum(own, figures.decoding),
        _sum(own, figures.total, "wall"),
        shown(figures.ratio(runs, work, peer, base, "cpu"), unit="x"),
        shown(figures.ratio(runs, work, peer, base, "wall"), unit="x"),
        "-" if same is None else f"{same:.0%}",
    ]


def _sum(runs: Sequence[Run], quantity: Any, clock: str = "cpu") -> str:
    values = [quantity(run, clock) for run in runs]
    return "-" if None in values else shown(Figure.of(values))


def _limits(limits: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Return what the machine could do in the same run."""

    def rate(name: str, clock: str) -> str:
        return shown(Figure.of([each[name][clock] for each in limits]), 0)

    said = [
        f"by {clock} time: memory read {rate('dram', clock)} GB/s, products in float32 {rate('fp32', clock)}, "
        f"bfloat16 {rate('bf16', clock)}, int8 {rate('int8', clock)} billion operations/s"
        for clock in ("cpu", "wall")
    ]
    return "Limits in the same run, " + "; ".join(said) + "."


def _shares(results: Mapping[str, Any]) -> list[str]:
    """Return how near each peer's decoding (b) comes to the memory's speed, and its prefill (a) to the products'."""
    runs, weights, limits = results["runs"], results["weights"], results["limits"]
    dram = median(each["dram"]["cpu"] for each in limits)
    lines = []
    for peer, said in results["peers"].items():
        shares = []
        read = [figures.bandwidth(run, weights, said["bits"], "cpu") for run in figures.runs_of(runs, peer, "b")]
        if read and None not in read:
            speed = median(read)
            shares.append(f"decoding (b) reads {speed:.1f} GB/s of weights, {speed / dram:.0%} of memory read")
        made = [figures.operations(run, weights, "cpu") for run in figures.runs_of(runs, peer, "a")]
        if made and None not in made:
            peaks = {name: median(each[name]["cpu"] for each in limits) for name in ("fp32", "bf16", "int8")}
            fastest, speed = max(peaks, key=lambda name: peaks[name]), median(made)
            share = f"{speed / peaks[fastest]:.0%} of {fastest} products"
            shares.append(f"prefill (a) makes {speed:.0f} billion operations/s, {share}")
        if shares:
            lines.append(f"- `{peer}`: {'; '.join(shares)}")
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--base", help="the peer that others are compared with; default: the first that was measured")
    args = parser.parse_args()
    results = json.loads(args.results.read_text(encoding="utf-8"))
    print(tables(results, args.base or next(iter(results["peers"]), "")))


if __name__ == "__main__":
    main()
