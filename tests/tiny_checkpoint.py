"""A tiny Llama checkpoint folder, written without torch: config, weights, tokenizer, chat template.

`transformers` loads the folder as it loads any real one: `AutoTokenizer` (also where torch is absent) and
`AutoModelForCausalLM`. The weights are random but spread widely enough that greedy answers vary and that every
earlier token shows in the logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIALS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
"""Special tokens; each one's id is its index here."""

CORPUS = (
    "The quick brown fox jumps over the lazy dog. What is the weather in Paris today? The weather is fine.",
    "system user assistant tool: You are a helpful assistant that answers in one short sentence.",
    'Call a tool with {"name": "get_weather", "arguments": {"city": "London", "unit": "celsius"}} and wait.',
    "one two three four five six seven eight nine ten; tell me a story about the sea and the stars above it",
)

# `bos_token` is part of the template, as in Llama 3: whoever tokenizes the rendered text must not add it again.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{%- endif %}
    {{- 'Tools:' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\nAnswer with <tool_call>{"name": ..., "arguments": ...}</tool_call> to call one.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) }}
            {{- '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def make_tiny_checkpoint(
    folder: str | Path,
    *,
    vocab_size: int = 320,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 64,
    max_position_embeddings: int = 512,
    seed: int = 0,
    dtype: str = "float32",
    tied: bool = False,
    model_type: str = "llama",
) -> Path:
    """Write a checkpoint into `folder` (made if missing) and return it. The same arguments write the same bytes.

    Args:
        folder: where the files go.
        vocab_size: rows of the embedding; the tokenizer needs 261 of them and fills the rest with merges it finds.
        hidden: width of the model; a multiple of `2 * heads`.
        layers: decoder blocks.
        heads: query heads; a multiple of `kv_heads`.
        kv_heads: key and value heads.
        intermediate: width of the feed-forward layer.
        max_position_embeddings: longest sequence the config admits, in tokens.
        seed: of the weights.
        dtype: of the stored weights: "float32" or "bfloat16".
        tied: share the embedding with the output head.
        model_type: "llama", "qwen2" (biases on query, key and value) or "qwen3" (normed queries and keys).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    architecture = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[model_type]
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "intermediate_size": intermediate,
        "max_position_embeddings": max_position_embeddings,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "pad_token_id": SPECIALS.index("<pad>"),
        "bos_token_id": SPECIALS.index("<s>"),
        "eos_token_id": SPECIALS.index("</s>"),
    }
    _write_json(folder / "config.json", config)
    # Two tokens end an answer, as in most chat models: a reader who takes only config.json's one misses the other.
    ends = [SPECIALS.index("</s>"), SPECIALS.index("<|im_end|>")]
    bos, pad = SPECIALS.index("<s>"), SPECIALS.index("<pad>")
    _write_json(folder / "generation_config.json", {"bos_token_id": bos, "eos_token_id": ends, "pad_token_id": pad})
    _write_tokenizer(folder, vocab_size, max_position_embeddings)
    _write_weights(folder / "model.safetensors", _tensor_shapes(config), np.random.default_rng(seed), dtype)
    return folder


def _tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    wide, narrow = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (wide, hidden),
        "self_attn.k_proj.weight": (narrow, hidden),
        "self_attn.v_proj.weight": (narrow, hidden),
        "self_attn.o_proj.weight": (hidden, wide),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config["model_type"] == "qwen2":
        block |= {f"self_attn.{name}_proj.bias": (wide if name == "q" else narrow,) for name in "qkv"}
    if config["model_type"] == "qwen3":
        block |= {f"self_attn.{name}_norm.weight": (width,) for name in "qk"}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (hidden,)
    return shapes if config["tie_word_embeddings"] else {**shapes, "lm_head.weight": (config["vocab_size"], hidden)}


def _write_weights(file: Path, shapes: dict[str, tuple[int, ...]], random: np.random.Generator, dtype: str) -> None:
    """Write the safetensors format by hand: numpy has no bfloat16 to give to its library."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, shape in shapes.items():
        data = _stored(_random_weight(name, shape, random), dtype)
        header[name] = {
            "dtype": {"float32": "F32", "bfloat16": "BF16"}[dtype],
            "shape": shape,
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start on an 8-byte boundary
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


def _random_weight(name: str, shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[np.float32]:
    if "norm" in name:
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith("bias"):
        return random.normal(0.0, 0.5, shape).astype(np.float32)
    spread = 1.0 if "embed" in name else _SPREADS.get(name.split(".")[-2], 1.0) / shape[1] ** 0.5
    return random.normal(0.0, spread, shape).astype(np.float32)


# Sharp attention (wide queries and keys) with a loud voice (wide values and outputs): the past weighs as much as the
# current token, so a misplaced column changes the answer.
_SPREADS = {"q_proj": 2.0, "k_proj": 2.0, "v_proj": 2.0, "o_proj": 2.0, "lm_head": 3.0}


def _stored(weight: npt.NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "float32":
        return weight.tobytes()
    bits = weight.view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    return (rounded >> 16).astype(np.uint16).tobytes()


def _write_tokenizer(folder: Path, vocab_size: int, model_max_length: int) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(SPECIALS) + len(alphabet):
        msg = f"vocab_size must hold {len(SPECIALS) + len(alphabet)} special tokens and bytes, got {vocab_size}"
        raise ValueError(msg)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIALS.index("<s>"))]
    )
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "<|im_end|>",
            "pad_token": "<pad>",
            "additional_special_tokens": ["</s>", "<|im_start|>"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": model_max_length,
        },
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
