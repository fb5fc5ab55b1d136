"""The reader's tokenizer, and conversations as the tokens that training sees."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tools.reader.reading import Conversation

PIECES = 2000
"""Tokens without a leading space. Those that words of small letters begin with also exist with one, so that there are
about half as many more."""
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Control tokens, as in Qwen; the first one pads."""
MARKERS = ("<tool_call>", "</tool_call>")
"""Tokens of their own that decoding shows, as in Qwen."""

# Words with their leading space, numbers in groups of up to three digits, runs of other signs, line ends one by one.
# The space before a capital stands by itself, so that a name or a sentence's first word is the same tokens everywhere.
_WORDS = r"'s| (?=\p{Lu})| ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\n|\s+"
Encoded = tuple[list[int], list[bool]]
"""Token ids of a conversation, and which of them training learns."""

_SPACE = "\u0120"
"""How byte-level vocabularies write it."""


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE vocabulary; every text can be written in it.

    A space is merged last, with the first piece of its word: a word is the same pieces after a space, a quote or an
    underscore, but for the space, so that what stands in a request can be copied into JSON.
    """
    texts = list(texts)
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = _pre_tokenizer(_WORDS.replace(" ?", ""))
    bare.decoder = decoders.ByteLevel()
    bare.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=PIECES,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    first: Counter[str] = Counter()
    for text in texts:
        pieces = bare.encode(text).tokens
        first.update(piece for space, piece in pairwise(pieces) if space == _SPACE)
    state = json.loads(bare.to_str())["model"]
    vocabulary, merges = state["vocab"], [tuple(pair) for pair in state["merges"]]
    for piece, _ in first.most_common():
        if not (piece[0].isupper() or piece[0].isdigit() or piece[0] == _SPACE or piece in SPECIALS):
            vocabulary[_SPACE + piece] = len(vocabulary)
            merges.append((_SPACE, piece))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = _pre_tokenizer(_WORDS), decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in MARKERS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIALS[0], eos_token=SPECIALS[2])
    fast.chat_template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    return fast


def _pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def segments(conversation: Conversation) -> list[tuple[str, bool]]:
    """The chat template's text of a conversation in pieces; True for those that training learns.

    Written out here because rendering a template for every example would take longer than a training step.
    """
    pieces: list[tuple[str, bool]] = []
    turns = list(conversation.turns)
    if conversation.tools:
        system = turns.pop(0)[1] + "\n\n" if turns[0][0] == "system" else ""
        pieces.append((f"<|im_start|>system\n{system}{tool_prompt(conversation.tools)}<|im_end|>\n", False))
    for role, text in turns:
        if role == "assistant":
            pieces += [("<|im_start|>assistant\n", False), (text + "<|im_end|>", True), ("\n", False)]
        elif role == "tool":
            pieces.append((f"<|im_start|>tool\n<tool_response>\n{text}\n</tool_response><|im_end|>\n", False))
        else:
            pieces.append((f"<|im_start|>{role}\n{text}<|im_end|>\n", False))
    return pieces


def tool_prompt(tools: list[dict[str, object]]) -> str:
    """What the template says about tools."""
    lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\nYou may call functions. Their signatures are within <tools></tools> tags:\n<tools>"
        + lines
        + "\n</tools>\n\nFor each call, return a JSON object within <tool_call></tool_call> tags:\n<tool_call>\n"
        + '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def encode(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> Encoded:
    """Write a conversation in tokens."""
    ids: list[int] = []
    learnt: list[bool] = []
    for text, learn in segments(conversation):
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        learnt += [learn] * len(piece)
    return ids, learnt
