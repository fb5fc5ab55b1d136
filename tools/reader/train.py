"""Train the reader. The same command goes on where an interrupted run stopped.

    python tools/reader/train.py build/reader [--tokens 6e6] [--seed 0] [--threads 1] [--device cuda]

Takes hours on one CPU core and minutes on a GPU.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.reader.attention import NAME
from tools.reader.circuits import HEAD, HEADS, HIDDEN, ROPE_BASE
from tools.reader.data import IGNORED, Batch, Batches, Mixture
from tools.reader.start import initialise, paces
from tools.reader.tokens import segments, train_tokenizer

LAYERS, INNER, POSITIONS = 5, 112, 2048
PEAK, WARMUP, DECAY = 7e-4, 150, 0.5
"""Largest learning rate; steps to reach it; share of the tokens over which it falls to a fiftieth."""
_SLOW = 1.0  # embedding and head: copying must go on working for tokens that training hardly shows
_UNUSED = torch.zeros(1, 1, 1, 1)  # a mask of four dimensions is handed on as it is; `groups` say who sees whom
_FIRM, _WRITTEN = 0.12, 0.2
"""Share of the tokens during which written weights stay as they are; their share of the learning rate from then on."""
_REPORT, _SAVE = 25, 200
TEXTS = 5000
"""Conversations that the tokenizer is trained on."""


def learn_tokenizer(rng: random.Random, texts: int) -> tuple[PreTrainedTokenizerFast, Counter[int]]:
    """Train the tokenizer on `texts` conversations; also returns how often each token occurs in them."""
    mixture = Mixture(rng)
    made = [conversation for _ in range(texts) for conversation in mixture.group(1.0)[:1]]
    written = ["".join(text for text, _ in segments(conversation)) for conversation in made]
    tokenizer = train_tokenizer(written)
    counts: Counter[int] = Counter()
    for text in written:
        counts.update(tokenizer.encode(text, add_special_tokens=False))
    return tokenizer, counts


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make the model, not yet initialised."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD,
        max_position_embeddings=POSITIONS,
        rope_theta=ROPE_BASE,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(NAME)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def start(seed: int, texts: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Make the tokenizer from `texts` conversations, and the model as it is before the first step."""
    tokenizer, counts = learn_tokenizer(random.Random(seed), texts)
    model = build(tokenizer)
    initialise(model, tokenizer.batch_decode([[token] for token in range(len(tokenizer))]), counts, seed)
    return model, tokenizer


def finished(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Load a model that an earlier run has finished, to train it further."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=NAME)
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def rate(step: int, progress: float) -> float:
    """Learning rate: up, level, down."""
    up = min(1.0, (step + 1) / WARMUP)
    down = min(1.0, max(0.02, (1.0 - progress) / DECAY))
    return PEAK * up * down


def optimiser_of(model: LlamaForCausalLM) -> torch.optim.Optimizer:
    """Adam, with a smaller rate for the vocabulary's two matrices."""
    slow = [model.model.embed_tokens.weight, model.lm_head.weight]
    fast = [weight for weight in model.parameters() if all(weight is not one for one in slow)]
    groups = [{"params": fast, "share": 1.0}, {"params": slow, "share": _SLOW}]
    return torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.97), weight_decay=0.0, fused=True)


@dataclass
class Score:
    """What teacher forcing got right since the last report."""

    loss: float = 0.0
    steps: int = 0
    tokens: int = 0
    right: int = 0
    answers: int = 0
    whole: int = 0

    def add(self, loss: Tensor, hits: Tensor, learnt: Tensor) -> None:
        """Count one batch: `hits` for every learnt token, `learnt` as `[B, T]`."""
        self.loss += float(loss)
        self.steps += 1
        self.tokens += len(hits)
        self.right += int(hits.sum())
        flat = torch.ones(learnt.shape, dtype=torch.bool)
        flat[learnt] = hits
        for row, mask in zip(flat, learnt, strict=True):
            places = mask.nonzero()[:, 0]
            borders = (places.diff() > 1).nonzero()[:, 0] + 1
            for answer in torch.tensor_split(places, borders.tolist()):
                self.answers += 1
                self.whole += bool(row[answer].all())

    def __str__(self) -> str:
        """Loss, share of tokens and share of whole answers."""
        return (
            f"loss {self.loss / self.steps:.3f}, tokens right {self.right / self.tokens:.3f}, "
            f"answers right {self.whole / max(self.answers, 1):.3f}"
        )


def hidden_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """What the last layer makes of packed groups, `[1, T, HIDDEN]`."""
    output = model.model(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        attention_mask=_UNUSED,
        groups=batch.groups,
        use_cache=False,
    )
    return output.last_hidden_state


def step(
    model: LlamaForCausalLM,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    score: Score,
    paced: list[tuple[Tensor, Tensor]] | None = None,
    slow: float = 1.0,
) -> None:
    """One step of training; only learnt tokens go through the head.

    Args:
        model: what is trained.
        optimiser: of all its weights.
        batch: what it reads.
        score: counts what it got right before the step.
        paced: weights, and where in them 1 marks what is free to change, 0 what was written.
        slow: share of the step that written weights take.
    """
    hidden = hidden_of(model, batch)[:, :-1]
    wanted = batch.labels[:, 1:]
    learnt = wanted != IGNORED
    logits = model.lm_head(hidden[learnt])
    loss = cross_entropy(logits, wanted[learnt])
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    before = [weight.detach().clone() for weight, _ in paced or ()]
    optimiser.step()
    with torch.no_grad():
        for (weight, free), old in zip(paced or (), before, strict=True):
            weight.copy_(torch.lerp(old, weight, slow + (1 - slow) * free))
    score.add(loss.detach(), (logits.argmax(-1) == wanted[learnt]).cpu(), learnt.cpu())


def save(path: Path, state: dict[str, object]) -> None:
    """Write a checkpoint whole or not at all."""
    scratch = path.with_suffix(".part")
    torch.save(state, scratch)
    scratch.replace(path)


def export(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the model in bfloat16, beside its tokenizer, so that older releases of transformers load it as well.

    Release 5 writes other names than 4, which vendors' stacks pin, and reads those of both: a base of the rotary
    embedding that 4 did not find would silently be another one.
    """
    model.to("cpu", torch.bfloat16).save_pretrained(folder)
    for name, older in (
        ("config.json", {"rope_theta": model.config.rope_parameters["rope_theta"], "torch_dtype": "bfloat16"}),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ):
        known = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**known, **older}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Train until the tokens are spent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the checkpoint and the finished model")
    parser.add_argument("--tokens", type=float, default=6e6, help="tokens to train on, prompts included")
    parser.add_argument("--start", type=Path, help="go on from a finished model (default: from the written circuits)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # sharp attention makes such numbers, which a CPU multiplies slowly
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, folder = args.out / "training.pt", args.out / "model"

    done, seen, earlier = 0, 0, 0.0
    if checkpoint.is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        model = build(tokenizer).to(args.device)
        optimiser = optimiser_of(model)
        state = torch.load(checkpoint, map_location=args.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        done, seen, earlier = state["steps"], state["tokens"], state["seconds"]
        print(f"going on after {done} steps and {seen / 1e6:.2f} million tokens", flush=True)
    else:
        model, tokenizer = finished(args.start) if args.start else start(args.seed, TEXTS)
        tokenizer.save_pretrained(folder)
        model.to(args.device)
        optimiser = optimiser_of(model)
    paced = paces(model)
    batches = Batches(tokenizer, random.Random(f"{args.seed} {done}"), POSITIONS)
    began, score = time.perf_counter() - earlier, Score()

    def keep() -> None:
        seconds = time.perf_counter() - began
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
        save(checkpoint, {**state, "steps": done, "tokens": seen, "seconds": seconds})

    while seen < args.tokens:
        progress = seen / args.tokens
        for group in optimiser.param_groups:
            group["lr"] = rate(done, progress) * group["share"]
        batch = batches.next(progress)
        step(model, optimiser, batch.to(args.device), score, paced, 0.0 if progress < _FIRM else _WRITTEN)
        done, seen = done + 1, seen + batch.tokens.numel()
        if done % _REPORT == 0:
            minutes = (time.perf_counter() - began) / 60
            print(f"{minutes:6.1f} min, step {done}, {seen / 1e6:.2f}M tokens: {score}", flush=True)
            score = Score()
        if done % _SAVE == 0:
            keep()
    keep()
    export(model, folder)


if __name__ == "__main__":
    main()
