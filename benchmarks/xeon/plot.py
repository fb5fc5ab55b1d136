"""A plot of a run: how many times as long as the base each peer took.

python -m benchmarks.xeon.plot results.json out.svg [--base ours-int8] [--clock cpu]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.xeon import figures


def plot(results: Mapping[str, Any], base: str, clock: str, file: Path) -> None:
    """Draw a group of bars for each workload, one for each peer; the format is that of the file's suffix.

    Bars are medians, lines reach from the least to the most of the repeats.
    """
    from matplotlib.figure import Figure

    runs = results["runs"]
    works = list(dict.fromkeys(run["work"] for run in runs))
    figure = Figure(figsize=(4 + 3 * len(works), 5), layout="constrained")
    axes = figure.subplots()
    width = 0.85 / len(results["peers"])
    for place, peer in enumerate(results["peers"]):
        ratios = {index: figures.ratio(runs, work, peer, base, clock) for index, work in enumerate(works)}
        there = {index + place * width: each for index, each in ratios.items() if each}
        bars = axes.bar(
            list(there),
            [each.median for each in there.values()],
            width,
            label=peer,
            yerr=[
                [each.median - each.least for each in there.values()],
                [each.most - each.median for each in there.values()],
            ],
        )
        axes.bar_label(bars, fmt="%.1f", fontsize="x-small")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks([index + 0.425 - width / 2 for index in range(len(works))], [f"({work})" for work in works])
    axes.set_ylabel(f"{'CPU' if clock == 'cpu' else 'wall'} time, multiples of {base}")
    axes.set_title(f"{results['model']}, {results['threads']} thread(s)")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(file)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--base", help="the peer that others are compared with; default: the first that was measured")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    args = parser.parse_args()
    results = json.loads(args.results.read_text(encoding="utf-8"))
    plot(results, args.base or next(iter(results["peers"])), args.clock, args.file)


if __name__ == "__main__":
    main()
