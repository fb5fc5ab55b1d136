"""Random-weight models of real shapes, written as real checkpoint folders.

    python -m benchmarks.xeon.models smol360 --into FOLDER

Speed does not depend on what the weights are. The tokenizer has one word per token id, so that token ids become text
and the same ids again: peers that take text do exactly the work of those that take tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

_LLAMA = {"tie_word_embeddings": False, "max_position_embeddings": 4096}
_PLAIN = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}

SHAPES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        # SmolLM2-360M's.
        "smol360": (
            "llama",
            {
                **_LLAMA,
                "vocab_size": 49152,
                "hidden_size": 960,
                "intermediate_size": 2560,
                "num_hidden_layers": 32,
                "num_attention_heads": 15,
                "num_key_value_heads": 5,
                "tie_word_embeddings": True,
                "rope_theta": 100_000.0,
            },
        ),
        # TinyLlama-1.1B's.
        "tiny1b": (
            "llama",
            {
                **_LLAMA,
                "vocab_size": 32000,
                "hidden_size": 2048,
                "intermediate_size": 5632,
                "num_hidden_layers": 22,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
            },
        ),
        # The first Falcons' block (one key and value head, attention and MLP side by side), 300 million parameters.
        "falcon": (
            "falcon",
            {
                "vocab_size": 32000,
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "multi_query": True,
                "parallel_attn": True,
                "new_decoder_architecture": False,
                "bias": False,
                "alibi": False,
                "max_position_embeddings": 2048,
            },
        ),
        # BLOOM-560m's, with a smaller vocabulary.
        "bloom": ("bloom", {"vocab_size": 32000, "hidden_size": 1024, "n_layer": 24, "n_head": 16}),
        # Pythia-410m's.
        "neox": (
            "gpt_neox",
            {
                "vocab_size": 50304,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "rotary_pct": 0.25,
                "max_position_embeddings": 2048,
                "tie_word_embeddings": False,
            },
        ),
        # Gemma-2b's block (heads of 256, one key and value head, GELU gate) at half its width and a smaller vocabulary.
        "gemma": (
            "gemma",
            {
                "vocab_size": 32000,
                "hidden_size": 1024,
                "intermediate_size": 8192,
                "num_hidden_layers": 18,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "head_dim": 256,
                "max_position_embeddings": 4096,
            },
        ),
        # Gemma-2-2b's block (a cap on scores, a window in every other layer) at less than half its width.
        "gemma2": (
            "gemma2",
            {
                "vocab_size": 32000,
                "hidden_size": 1024,
                "intermediate_size": 4608,
                "num_hidden_layers": 18,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "max_position_embeddings": 4096,
            },
        ),
        # Seconds on any machine: to try the harness, not to measure. Weights spread widely, so that answers vary.
        "tiny": (
            "llama",
            {
                **_LLAMA,
                "vocab_size": 4096,
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "initializer_range": 0.1,
            },
        ),
    }
)
"""Names of models: transformers' model type, and what differs from its defaults."""


def model_folder(name: str, cache: Path) -> Path:
    """Return the folder of a model, written first where it is not there yet."""
    return whole(cache / name, lambda folder: _write(name, folder))


def whole(target: Path, write: Callable[[Path], object]) -> Path:
    """Return a folder that is there whole or not at all.

    Args:
        target: the folder.
        write: fills the empty folder it is given; called only where `target` is missing.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        write(scratch)
        scratch.chmod(0o755)
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return target


def text(tokens: Sequence[int]) -> str:
    """Return the text whose tokens these are."""
    return " ".join(f"w{token}" for token in tokens)


def tokens(text: str) -> list[int]:
    """Return the tokens of a text."""
    return [int(word[1:]) for word in text.split()]


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], Path, int]]:
    """Read what a folder's safetensors files hold, without the weights.

    Returns:
        For each name: dtype, shape, file, and where in the file its bytes begin. The layout is that of
        https://huggingface.co/docs/safetensors: eight bytes with the header's length, the header in json, the data.
    """
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin = 8 + length + entry["data_offsets"][0]
            found[name] = (entry["dtype"], tuple(entry["shape"]), file, begin)
    return found


def weights(folder: Path) -> dict[str, int]:
    """Count the numbers in the matrices that a step multiplies with: `body`, and the output `head`.

    A prefill computes the head for one token of a prompt, and the body for all of them; a decode step both.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vocabulary = config["vocab_size"]
    matrices = [shape for _, shape, _, _ in tensors(folder).values() if len(shape) == 2]
    tables = [math.prod(shape) for shape in matrices if shape[0] == vocabulary]  # embedding and head, or both in one
    return {"body": sum(map(math.prod, matrices)) - sum(tables), "head": tables[0]}


def _write(name: str, folder: Path) -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed's guess goes to standard output
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    model_type, shape = SHAPES[name]
    config = AutoConfig.for_model(model_type, **{**_PLAIN, **shape})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(config.vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def main() -> None:
    """Write models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=SHAPES)
    parser.add_argument("--into", type=Path, required=True)
    args = parser.parse_args()
    for name in args.names:
        folder = model_folder(name, args.into)
        counted = weights(folder)
        print(f"{folder}: {sum(counted.values()) / 1e6:.0f} million weights are multiplied with")


if __name__ == "__main__":
    main()
