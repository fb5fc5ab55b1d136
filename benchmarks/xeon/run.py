"""Measure this package and its peers in one interleaved run.

    python -m benchmarks.xeon.run --model smol360 --work a,b,c,d --peers ours-int8,hf-fp32,llama_cpp-q8_0 \
        --threads 1 --repeats 3 --cache FOLDER --environments FOLDER --out results.json

In every repeat, each peer in turn starts a process of its own, loads the model, has each workload's first call answered
with two tokens to warm up, answers the workloads, and ends: nothing that it remembers reaches the next repeat, and no
two peers are in memory together. Between warm-up and measurement the prompts' tokens change, so that no prefix cache
holds them. A machine whose speed drifts is fair to all, as each repeat goes round all peers; the machine's limits are
measured in every repeat, too.

With `--threads 1` processor time is the figure to trust on a busy machine; wall time stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.xeon import roster, workloads
from benchmarks.xeon.models import SHAPES, model_folder, weights, whole
from benchmarks.xeon.process import ROOT, PeerFailed, Process
from benchmarks.xeon.roster import Peer
from langchain_accel.devices.processors import cores, cpu_flags


def main() -> None:
    """Measure, and write the results after every turn."""
    args = _arguments()
    peers = [roster.find(name, args.ours) for name in args.peers.split(",")]
    works = args.work.split(",")
    if unknown := set(works) - set(workloads.NAMES):
        sys.exit(f"no workload is called {', '.join(sorted(unknown))}: choose from {', '.join(workloads.NAMES)}")
    folder = model_folder(args.model, args.cache)
    results: dict[str, Any] = {
        "model": args.model,
        "weights": weights(folder),
        "threads": args.threads,
        "machine": _machine(),
        "limits": [],
        "peers": {},
        "skipped": {},
        "runs": [],
    }

    def save() -> None:
        args.out.write_text(json.dumps(results) + "\n", encoding="utf-8")

    def start(peer: Peer) -> Process:
        python = peer.python(args.environments)
        if python is None:
            msg = f"not installed: {peer.install}; or python -m benchmarks.xeon.setup {peer.environment} --into FOLDER"
            raise PeerFailed(msg)
        log = args.out.with_suffix(f".{peer.name}.log")
        return Process(python, peer.module, threads=args.threads, log=log, patience=args.patience)

    for repeat in range(args.repeats):
        _say(f"repeat {repeat + 1} of {args.repeats}: limits")
        results["limits"].append(_limits(args.threads))
        for peer in peers:
            if peer.name in results["skipped"]:
                continue
            try:
                form = _form(peer, folder, start)
                with start(peer) as process:
                    _turn(peer, process, form, works, repeat, args.threads, results)
            except PeerFailed as error:
                results["skipped"][peer.name] = reason = " ".join(str(error).split())
                _say(f"{peer.name} is left out: {reason}")
            save()


def _turn(
    peer: Peer, process: Process, folder: Path, works: Sequence[str], repeat: int, threads: int, results: dict[str, Any]
) -> None:
    """Let one peer answer all workloads once."""
    _say(f"repeat {repeat + 1}: {peer.name} loads")
    loaded = process.ask("load", folder=folder, threads=threads, **peer.settings)
    results["peers"][peer.name] = {**loaded, "settings": dict(peer.settings), "bits": peer.bits}
    for name in works:
        process.warm(workloads.workload(name, -1 - repeat))
        work = workloads.workload(name, repeat)
        _say(f"repeat {repeat + 1}: {peer.name} answers {name}: {work.about}")
        calls = process.answer(work)
        results["runs"].append(
            {
                "peer": peer.name,
                "work": name,
                "repeat": repeat,
                "new": work.new,
                "new_tokens": work.new_tokens,
                "prompt_tokens": work.prompt_tokens,
                "load_average": os.getloadavg()[0],
                "tokens": [tokens for call in calls for tokens in call.pop("tokens")],
                "calls": calls,
            }
        )


def _form(peer: Peer, folder: Path, start: Callable[[Peer], Process]) -> Path:
    """Return the model in the form that a peer reads, written first where it is not there yet."""
    if peer.form is None:
        return folder

    def write(into: Path) -> None:
        _say(f"{peer.name}: writing {peer.form}")
        with start(peer) as process:
            process.ask("prepare", source=folder, into=into, **peer.settings)

    return whole(folder.with_name(f"{folder.name}-{peer.form}"), write)


def _limits(threads: int) -> dict[str, dict[str, float]]:
    """Measure the machine's limits, in a process of their own."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "benchmarks.xeon.limits", "--threads", str(threads)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    limits: dict[str, dict[str, float]] = json.loads(done.stdout)
    return limits


def _machine() -> dict[str, Any]:
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "platform": platform.platform(),
        "cores": cores(),
        "flags": [flag for flag in wanted if flag in cpu_flags()],
    }


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _path(given: str) -> Path:
    return Path(given).resolve()  # peers run in another folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="smol360")
    parser.add_argument("--work", default=",".join(workloads.NAMES), help="workloads; all by default")
    parser.add_argument("--peers", default=",".join(roster.DEFAULT), help="see roster.py; default: %(default)s")
    parser.add_argument("--ours", type=json.loads, default={}, help="json: further options of our device, and dtype")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache", type=_path, required=True, help="folder of models; written once")
    parser.add_argument("--environments", type=_path, required=True, help="folder that setup made environments in")
    parser.add_argument("--patience", type=float, default=3600, help="seconds for one answer; default: %(default)s")
    parser.add_argument("--out", type=_path, required=True, help="json file of all measurements")
    return parser.parse_args()


if __name__ == "__main__":
    main()
