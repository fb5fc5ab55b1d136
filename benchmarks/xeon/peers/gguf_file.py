"""A Llama checkpoint folder as llama.cpp's file format, in bfloat16.

Names, metadata and the order of rotary pairs are those of llama.cpp's `convert_hf_to_gguf.py` for `LlamaForCausalLM`.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from benchmarks.xeon.models import tensors

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write(folder: Path, file: Path) -> None:
    """Write a folder's weights to a file, without a vocabulary: prompts are token ids.

    Raises:
        ValueError: the folder holds another architecture, or another dtype.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        msg = f"only Llama models are converted for llama.cpp here, and this is a {config['model_type']}"
        raise ValueError(msg)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    out = gguf.GGUFWriter(file, "llama")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_dimension_count(config["hidden_size"] // heads)
    out.add_rope_freq_base(float((config.get("rope_parameters") or config)["rope_theta"]))
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("no_vocab")
    out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, (dtype, shape, source, begin) in tensors(folder).items():
        if dtype != "BF16":
            msg = f"weights are converted from bfloat16, and {name} is {dtype}"
            raise ValueError(msg)
        bits = np.memmap(source, np.uint16, "r", begin, shape)
        if ".q_proj" in name or ".k_proj" in name:
            bits = _interleaved(bits, heads if ".q_proj" in name else kv_heads)
        if len(shape) == 1:  # norms are float32 there
            out.add_tensor(_name(name), (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            rows = np.ascontiguousarray(bits).view(np.uint8)
            out.add_tensor(_name(name), rows, raw_dtype=gguf.GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _name(name: str) -> str:
    """Return a tensor's name in the file."""
    name = name.removesuffix(".weight")
    if not name.startswith("model.layers."):
        return f"{NAMES[name]}.weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def _interleaved(bits: npt.NDArray[np.uint16], heads: int) -> npt.NDArray[np.uint16]:
    """Rotary pairs side by side, where transformers has one half of a head after the other."""
    rows, columns = bits.shape
    return bits.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
