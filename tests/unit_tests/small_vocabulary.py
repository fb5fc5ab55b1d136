"""A byte-level vocabulary of 420 tokens, to test grammars with."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END, TURN = 0, 1  # two end-of-sequence ids
OTHER = 2  # another special token
WIDTH = 500  # logits wider than the vocabulary
SAMPLE = '{"name": "Ada", "age": 36, "tags": ["x", "y"], "kind": "cat"} true false null the quick 你好 é 😀\n'


@lru_cache
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<end>", "<turn>", "<other>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([SAMPLE] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
