"""How long workloads take, each peer in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from langchain_accel.cli.workloads import Answer, Workload
from langchain_accel.errors import DeviceUnavailable


@dataclass(slots=True)
class Measured:
    """One workload by one peer. Times are in seconds, one for each repeat.

    Attributes:
        workload: its name.
        peer: who answered.
        tokens: tokens of all answers.
        wall: time that passed.
        cpu: processor time of this process; what ranks in other processes take is not in it.
    """

    workload: str
    peer: str
    tokens: int
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the median repeat by the time that passed."""
        return self.tokens / max(median(self.wall), 1e-9)


def compare(
    answers: Mapping[str, Answer],
    workloads: Callable[[int], Sequence[Workload]],
    repeats: int,
    told: Callable[[str], object] = lambda _: None,
) -> list[Measured]:
    """Let every peer answer every workload, in turn, so that a machine whose speed drifts is fair to all.

    Args:
        answers: peers by name.
        workloads: the same ones for each repeat, with other first tokens. Repeat 0 warms up and is not counted.
        repeats: how often they are counted.
        told: what is being done.

    Raises:
        AccelError: a peer made more or fewer tokens than were asked for, or could not answer.
    """
    measured: dict[tuple[str, str], Measured] = {}
    for repeat in range(repeats + 1):
        for work in workloads(repeat):
            for peer, answer in answers.items():
                told(f"{work.name}: {peer}, {f'repeat {repeat} of {repeats}' if repeat else 'warming up'}")
                one = measured.setdefault((work.name, peer), Measured(work.name, peer, work.tokens))
                cpu, wall = time.process_time(), time.perf_counter()
                work.run(answer)
                if repeat:
                    one.wall.append(time.perf_counter() - wall)
                    one.cpu.append(time.process_time() - cpu)
    return list(measured.values())


def ratio(measured: Sequence[Measured], one: Measured, base: str, *, cpu: bool = False) -> float:
    """Return how many times as long one peer took as `base` did for the same workload: medians over the repeats."""
    [other] = [each for each in measured if each.workload == one.workload and each.peer == base]
    taken, least = (median(each.cpu if cpu else each.wall) for each in (one, other))
    return taken / max(least, 1e-9)


def check_plot() -> None:
    """Refuse to plot before anything is measured.

    Raises:
        DeviceUnavailable: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        msg = "a plot needs matplotlib: pip install matplotlib"
        raise DeviceUnavailable(msg)


def plot(measured: Sequence[Measured], file: Path, title: str) -> None:
    """Draw tokens per second, a group of bars for each workload; the format is that of the file's suffix.

    Raises:
        DeviceUnavailable: matplotlib is not installed.
    """
    check_plot()
    from matplotlib.figure import Figure

    names, peers = (
        list(dict.fromkeys(one.workload for one in measured)),
        list(dict.fromkeys(one.peer for one in measured)),
    )
    figure = Figure(figsize=(1.5 + 1.2 * len(names), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(peers)
    for place, peer in enumerate(peers):
        speeds = {one.workload: one.tokens_per_second for one in measured if one.peer == peer}
        across = [index + place * width for index in range(len(names))]
        bars = axes.bar(across, [speeds[name] for name in names], width, label=peer)
        axes.bar_label(bars, fmt="%.0f")
    axes.set_xticks([index + (len(peers) - 1) * width / 2 for index in range(len(names))], names)
    axes.set_ylabel("tokens/s")
    axes.set_title(title)
    axes.legend()
    figure.savefig(file)
