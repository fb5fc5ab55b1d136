"""What fewer bits cost a trained model: perplexity, likeliest tokens, whole answers.

    python benchmarks/quality.py [FOLDER] [--share 0.2] [--json scores.json]

FOLDER is a model of `tools/reader`, by default the one of the package; what is asked is its evaluation, which
nobody trained on. Perplexity is that of the right answers, token by token; "likeliest token" is the share of them where
the rounded model and the exact one agree.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from langchain_accel import ChatXeon, XeonOptions, embedded_reader
from langchain_accel.devices import xeon
from langchain_accel.devices.base import Plan
from tools.reader.evaluate import score, tasks
from tools.reader.tokens import encode

WEIGHTS = ("exact", "int8", "int4")
_MAX_LEN = 2048
_STEP = 64
"""Tokens of a conversation whose logits are taken at once."""

Encoded = list[tuple[list[int], list[bool]]]


def answer_logits(folder: str, weights: str, conversations: Encoded) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-probability of every token of the right answers, and the likeliest token there."""
    device = xeon.load(
        Plan("xeon", folder, rows=1, max_len=_MAX_LEN, dtype="float32"), XeonOptions(weights=weights, threads=1)
    )
    found: list[float] = []
    likeliest: list[int] = []
    with closing(device):
        for ids, learnt in conversations:
            pieces = []
            for start in range(0, len(ids), _STEP):
                tokens = np.array([ids[start : start + _STEP]])
                logits = device.verify(tokens, np.array([tokens.shape[1]]), np.array([start]), np.array([0]))
                pieces.append(np.array(logits[0], dtype=np.float64))
            before = np.concatenate(pieces)[:-1][learnt[1:]]
            wanted = np.array(ids[1:])[learnt[1:]]
            most = before.max(-1, keepdims=True)
            total = most[:, 0] + np.log(np.exp(before - most).sum(-1))
            found += (before[np.arange(len(wanted)), wanted] - total).tolist()
            likeliest += before.argmax(-1).tolist()
    return np.array(found), np.array(likeliest)


def right_answers(folder: str, weights: str, share: float) -> dict[str, tuple[int, int]]:
    """For each part of the evaluation how many answers were right, and how many were asked."""
    options = XeonOptions(weights=weights, threads=1)
    with closing(
        ChatXeon(model=folder, rows=8, max_len=_MAX_LEN, max_tokens=256, dtype="float32", options=options)
    ) as llm:
        scores = [score(llm, task)[0] for task in tasks(share)]
    return {one.task: (one.right, one.asked) for one in scores}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=embedded_reader())
    parser.add_argument("--share", type=float, default=0.2, help="share of each part of the evaluation to ask")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    asked = [encode(tokenizer, conversation) for task in tasks(args.share) for conversation in task.conversations]
    figures: dict[str, dict[str, object]] = {}
    exact_likeliest = exact_loss = None
    for weights in WEIGHTS:
        log_probabilities, likeliest = answer_logits(args.folder, weights, asked)
        loss = -float(log_probabilities.mean())
        if exact_likeliest is None:
            exact_likeliest, exact_loss = likeliest, loss
        right = right_answers(args.folder, weights, args.share)
        figures[weights] = {
            "perplexity": float(np.exp(loss)),
            "perplexity ratio": float(np.exp(loss - exact_loss)),
            "likeliest token": float((likeliest == exact_likeliest).mean()),
            "right": sum(count for count, _ in right.values()) / sum(count for _, count in right.values()),
            "parts": right,
        }
        print(weights, json.dumps(figures[weights]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
