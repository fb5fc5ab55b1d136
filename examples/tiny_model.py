"""Make a small model folder with random weights in a real architecture, for trying things out without a download.

The tokenizer is trained on the demo's corpus, the chat template is ChatML with tools as Hermes and Qwen write them, the
weights mean nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

# Tools stand in the system message; a call is JSON between <tool_call> and </tool_call>; a result is a user's turn.
CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- 'You may call these tools:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools>\\nTo call one, write\\n<tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call>' }}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>\\n{"name": ' + (call.function.name | tojson) }}
            {{- ', "arguments": ' + (call.function.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def make_tiny_model(folder: Path, corpus: Path, *, seed: int = 0) -> Path:
    """Write a Llama of about 3 million random parameters and its tokenizer to `folder`.

    Args:
        folder: where to write `config.json`, `model.safetensors` and the tokenizer files; made if need be.
        corpus: folder of Markdown pages the tokenizer is trained on.
        seed: of the random weights.
    """
    # Where DeepSpeed is installed, transformers imports it, and its guess at the accelerator goes to standard output.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (page.read_text(encoding="utf-8") for page in sorted(corpus.glob("*.md"))),
        trainers.BpeTrainer(
            vocab_size=4096,
            special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>")
    fast.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@contextmanager
def model_or_tiny(model: str | None) -> Iterator[dict[str, str]]:
    """Yield the fields `model` and `dtype` of a chat model: those of `model`, or of a tiny random one made on the spot.

    Args:
        model: a folder or hub id; None makes the tiny one, and says so on standard error.
    """
    if model is not None:
        yield {"model": model, "dtype": "auto"}
        return
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_tiny_model(Path(scratch) / "tiny", CORPUS)
        print(
            "No --model given: this one was made just now with random weights: its words mean nothing.", file=sys.stderr
        )
        yield {"model": str(folder), "dtype": "float32"}
