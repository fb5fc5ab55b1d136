"""Tiny random model folders of real architectures, saved as a hub would hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

VOCABULARY = 384
POSITIONS = 128
WINDOW = 8
SPECIALS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
SENTENCES = (
    "The quick brown fox jumps over the lazy dog while the sun goes down behind the hills.",
    "What is the capital of France? The capital of France is Paris, a city on the river Seine.",
    "system user assistant: You are a helpful assistant. Answer in one sentence, please.",
    "One two three four five six seven eight nine ten; numbers such as 3.14 and 2,718 appear too.",
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_BASE = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_MODERN = {
    **_BASE,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.25,
}
_WIDE = {**_MODERN, "head_dim": 16}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_FALCON = {
    **_BASE,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.25,
    "bias": False,
}
_BLOOM = {**_BASE, "hidden_size": 48, "n_layer": 2, "n_head": 4, "initializer_range": 0.25}
_NEOX = {**_MODERN, "num_key_value_heads": 6, "rotary_pct": 0.25, "hidden_size": 96}
_MPT = {**_BASE, "d_model": 48, "n_layers": 2, "n_heads": 4, "max_seq_len": POSITIONS, "initializer_range": 0.25}

ARCHITECTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "llama": ("llama", _MODERN),
        "llama-tied": ("llama", {**_MODERN, "tie_word_embeddings": True}),
        "llama-yarn": (
            "llama",
            {
                **_MODERN,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
            },
        ),
        "mistral": ("mistral", {**_MODERN, "sliding_window": WINDOW}),
        "qwen2": ("qwen2", _MODERN),
        "qwen2-window": (
            "qwen2",
            {**_MODERN, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        ),
        "qwen3": ("qwen3", _WIDE),
        "gemma2": (
            "gemma2",
            {
                **_WIDE,
                **_MIXED,
                "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 8.0,
                "query_pre_attn_scalar": 9,
            },
        ),
        "phi3": ("phi3", {**_MODERN, "sliding_window": WINDOW}),
        "falcon-new": ("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
        "falcon-old": (
            "falcon",
            {**_FALCON, "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "alibi": False},
        ),
        "falcon-alibi": (
            "falcon",
            {
                **_FALCON,
                "num_attention_heads": 4,
                "new_decoder_architecture": False,
                "multi_query": False,
                "parallel_attn": False,
                "alibi": True,
                "bias": True,
            },
        ),
        "bloom": ("bloom", _BLOOM),
        "bloom-6-heads": ("bloom", {**_BLOOM, "n_head": 6}),
        "gpt-neox": ("gpt_neox", {**_NEOX, "use_parallel_residual": True}),
        "gpt-neox-serial": ("gpt_neox", {**_NEOX, "use_parallel_residual": False}),
        "opt": (
            "opt",
            {
                **_BASE,
                "hidden_size": 48,
                "word_embed_proj_dim": 48,
                "ffn_dim": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": POSITIONS,
                "init_std": 0.25,
            },
        ),
        "mpt": ("mpt", _MPT),
        "mpt-6-heads": ("mpt", {**_MPT, "n_heads": 6}),
        "starcoder2": ("starcoder2", {**_MODERN, "sliding_window": WINDOW}),
        "mixtral": ("mixtral", {**_MODERN, "num_local_experts": 4, "num_experts_per_tok": 2}),
        "qwen3-moe": ("qwen3_moe", {**_WIDE, **_EXPERTS, "num_experts": 4, "decoder_sparse_step": 1}),
        "gpt2": (
            "gpt2",
            {**_BASE, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "initializer_range": 0.25},
        ),
        "gpt-bigcode": (
            "gpt_bigcode",
            {**_BASE, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "initializer_range": 0.25},
        ),
        "granite": ("granite", {**_MODERN, "attention_multiplier": 0.2, "logits_scaling": 2.0}),
        "gemma": ("gemma", _WIDE),
        "gemma3": ("gemma3_text", {**_WIDE, **_MIXED, "query_pre_attn_scalar": 9}),
        "olmo2": ("olmo2", _MODERN),
        "olmo3": ("olmo3", {**_MODERN, **_MIXED}),
        "smollm3": ("smollm3", {**_MODERN, "no_rope_layers": [1, 0]}),
        "cohere": ("cohere", _MODERN),
        "cohere2": ("cohere2", {**_MODERN, **_MIXED}),
        "stablelm": ("stablelm", {**_MODERN, "use_qkv_bias": True}),
        "stablelm-parallel": ("stablelm", {**_MODERN, "use_parallel_residual": True}),
        "phi": ("phi", {**_MODERN, "num_key_value_heads": 6}),
        "exaone4": ("exaone4", {**_MODERN, **_MIXED}),
        "glm4": ("glm4", _WIDE),
        "nemotron": ("nemotron", _WIDE),
        "ernie4_5": ("ernie4_5", _WIDE),
        "deepseek-v3": (
            "deepseek_v3",
            {
                **_MODERN,
                **_EXPERTS,
                "num_key_value_heads": 6,
                "q_lora_rank": 16,
                "kv_lora_rank": 16,
                "qk_nope_head_dim": 8,
                "qk_rope_head_dim": 8,
                "v_head_dim": 12,
                "n_routed_experts": 4,
                "n_group": 2,
                "topk_group": 1,
                "n_shared_experts": 1,
                "first_k_dense_replace": 1,
            },
        ),
    }
)
"""Architecture -> transformers' model type and the config entries of a tiny model."""


def make_uneven(name: str, folder: Path) -> Path:
    """Make one with heads of a width that whole native steps do not take."""
    _, numbers = ARCHITECTURES[name]
    return make(name, folder, **({"head_dim": 24} if numbers.get("head_dim") else {}))


def make(architecture: str, folder: Path, **config_overrides: Any) -> Path:
    """Save a random model of an architecture with tokenizer and generation settings, and return its folder.

    The weights are the same every time, and spread wide enough that greedy answers are no repeated token.

    Args:
        architecture: a name in `ARCHITECTURES`.
        folder: where to save; made if absent.
        config_overrides: config entries that differ.
    """
    model_type, entries = ARCHITECTURES[architecture]
    config = AutoConfig.for_model(model_type, **{**entries, **config_overrides})
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases: away from ones and zeros, where mistakes would not show
                parameter.add_(torch.randn_like(parameter) * 0.1)
    torch.set_rng_state(state)
    model.save_pretrained(folder)
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of `VOCABULARY` tokens with a ChatML-like template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=POSITIONS
    )
    wrapped.chat_template = TEMPLATE
    return wrapped
