"""Make the fitted fixture model: a tiny Llama that knows the prompts of `tests/fitted/lessons.py` by heart.

    python tools/fit_fixture.py tests/fitted/model [--seed 0]

It is overfitted on purpose, and on nothing else: a fixture for tests that need a model to make one certain choice. The
prompts are rendered by this package's own code, so that they are what `ChatXeon` sends. The same seed, torch version
and machine give the same bytes. Takes a minute or two on two cores.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from langchain_accel.runtime.checkpoint import Checkpoint, open_checkpoint
from tests.fitted.lessons import LESSONS

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Control tokens, as in Qwen; the first one pads."""

MARKERS = ("<tool_call>", "</tool_call>")
"""Tokens of their own that decoding shows, as in Qwen."""

VOCABULARY, POSITIONS = 1024, 2048

# How Hermes and Qwen models are told about tools: in the system turn; results come back as turns of their own.
TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n\\nYou may call functions. Their signatures are within <tools></tools> tags:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools>\\n\\nFor each call, return a JSON object within <tool_call></tool_call> tags:\\n<tool_call>\\n' }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>tool\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + (' name=' + message.name if message.name else '') + '\\n' }}
        {{- message.content or '' }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n' if message.content or not loop.first }}
            {%- set written = {'name': call.function.name, 'arguments': call.function.arguments} | tojson %}
            {{- '<tool_call>\\n' + written + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


@dataclass(frozen=True)
class Sheet:
    """All lessons as one batch.

    Attributes:
        tokens: prompt, answer and end of turn of each lesson, padded on the right.
        answers: the tokens to be learnt; -100 elsewhere.
    """

    tokens: torch.Tensor
    answers: torch.Tensor


def fit(folder: Path, seed: int, steps: int) -> None:
    """Write the fitted model into `folder`."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # sums in one order
    folder.mkdir(parents=True, exist_ok=True)
    config = _config()
    config.save_pretrained(folder)
    _tokenizer([]).save_pretrained(folder)
    bare = open_checkpoint(folder)
    _tokenizer([text for lesson in _texts(bare) for text in lesson]).save_pretrained(folder)
    _name_the_tokenizer_for_every_transformers(folder / "tokenizer_config.json")
    sheet = _sheet(open_checkpoint(folder))
    model = LlamaForCausalLM(config)
    _learn(model, sheet, steps)
    model.to(torch.bfloat16).save_pretrained(folder)
    GenerationConfig(eos_token_id=[2, 0], pad_token_id=0).save_pretrained(folder)
    margin = _margin(model.float(), sheet)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)  # as git keeps it
    size = weights.stat().st_size
    parameters = sum(each.numel() for each in model.parameters())
    print(f"{parameters:,} parameters, {size:,} bytes; every token is ahead of the next best by {margin:.1f} or more")
    if margin < 1:
        sys.exit("not learnt: a greedy answer could go another way")


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIALS.index("<|im_end|>"),
        pad_token_id=SPECIALS.index("<|endoftext|>"),
        architectures=["LlamaForCausalLM"],
    )


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that knows the words of these texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    marker = re.compile("|".join(map(re.escape, SPECIALS + MARKERS)))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKERS),
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([piece for text in texts for piece in marker.split(text)], trainer)
    bpe.add_tokens([AddedToken(each, special=False, normalized=False) for each in MARKERS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=POSITIONS
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _name_the_tokenizer_for_every_transformers(file: Path) -> None:
    """Transformers 5 writes a class name that version 4 does not know; both know this one."""
    entries = json.loads(file.read_text("utf-8"))
    entries.pop("backend", None)
    file.write_text(json.dumps({**entries, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n", "utf-8")


def _texts(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return prompt and answer of every lesson."""
    return [
        (lesson.prompt(lambda messages, tools: checkpoint.render(messages, None, {}, tools)), lesson.answer)
        for lesson in LESSONS
    ]


def _sheet(checkpoint: Checkpoint) -> Sheet:
    pairs = [
        [checkpoint.encode(text, add_special_tokens=False) for text in (prompt, f"{answer}<|im_end|>")]
        for prompt, answer in _texts(checkpoint)
    ]
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    tokens = torch.zeros(len(pairs), longest, dtype=torch.long)
    answers = torch.full_like(tokens, -100)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        answers[row, len(prompt) : end] = torch.tensor(answer)
    print(f"{len(pairs)} lessons of up to {longest} tokens, {int((answers >= 0).sum())} tokens to be learnt")
    return Sheet(tokens, answers)


def _learn(model: LlamaForCausalLM, sheet: Sheet, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    began = time.monotonic()
    for step in range(1, steps + 1):
        loss = model(sheet.tokens, labels=sheet.answers).loss  # causal, and padded on the right: no mask needed
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step}: loss {loss.item():.4f}, {time.monotonic() - began:.0f} s", flush=True)


def _margin(model: LlamaForCausalLM, sheet: Sheet) -> float:
    """Return by how much the logit of a token to be learnt is ahead of the next best, at least; negative if behind."""
    with torch.no_grad():
        logits = model(sheet.tokens).logits[:, :-1]
    wanted = sheet.answers[:, 1:]
    known, logits = wanted[wanted >= 0], logits[wanted >= 0]
    right = logits.gather(1, known[:, None])[:, 0]
    others = logits.scatter(1, known[:, None], float("-inf")).max(1).values
    return float((right - others).min())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    fit(arguments.folder, arguments.seed, arguments.steps)
