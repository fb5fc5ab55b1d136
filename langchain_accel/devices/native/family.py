"""What tells the models that whole-step kernels express from Llama: a table by model type."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Names:
    """Where a model type's modules are; of several alternatives in a tuple, the first that a model has.

    Attributes:
        decoder: what holds the layers, the last norm and the rotary positions.
        embedding_norm: in the decoder; "" for none.
        layers: likewise.
        norm: likewise.
        before_attention: norm in a layer; alternatives.
        before_mlp: likewise.
        after_attention: norm in a layer of what its first half makes, before that is added; "" for none.
        after_mlp: of its second half, likewise.
        qkv: modules in a layer, one below the other.
        fused: whether the one of `qkv` holds, for each key/value head, its queries, its keys and its values.
        out: in a layer.
        gate_up: likewise, one below the other; one without a gate.
        down: likewise.
    """

    decoder: str = "model"
    embedding_norm: str = ""
    layers: str = "layers"
    norm: str = "norm"
    before_attention: tuple[str, ...] = ("input_layernorm",)
    before_mlp: tuple[str, ...] = ("post_attention_layernorm",)
    after_attention: str = ""
    after_mlp: str = ""
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    fused: bool = False
    out: str = "self_attn.o_proj"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"


@dataclass(frozen=True)
class Member:
    """How one model type differs from Llama.

    Attributes:
        names: of its modules.
        gated: whether an activation multiplies another product.
        centred: whether its norms take the mean away.
        parallel: names of the config's flags of which any lets both halves of a layer read what came into it.
        ropes: whether types of layers have rotary positions of their own.
        alibi: whether it has linear biases for positions; others have where the config's `alibi` says so.
        act: its activation, where the config has none.
        foreign: names of the config's flags that ask for what the kernels do not compute.
        norm_offset: added to the weights of all norms.
        embedding_factor: name of the config's factor on embedded tokens; None for 1.
        rooted: embedded tokens are multiplied by the root of the hidden size, in the dtype of the weights.
        scaling: name of the config's factor on the scores; None for one over the root of a head's width.
        query_scalar: name of the config's number whose root scores are divided by; None for a head's width.
        residual_factor: name of the config's factor on what is added to the residual stream; None for 1.
        logits_divisor: name of the config's number that the logits are divided by; None for 1.
    """

    names: Names = Names()
    gated: bool = True
    centred: bool = False
    parallel: tuple[str, ...] = ()
    ropes: bool = False
    alibi: bool = False
    act: str | None = None
    foreign: tuple[str, ...] = ()
    norm_offset: float = 0.0
    embedding_factor: str | None = None
    rooted: bool = False
    scaling: str | None = None
    query_scalar: str | None = None
    residual_factor: str | None = None
    logits_divisor: str | None = None


_SANDWICHED = Names(
    before_mlp=("pre_feedforward_layernorm",),
    after_attention="post_attention_layernorm",
    after_mlp="post_feedforward_layernorm",
)
_FALCON = Names(
    decoder="transformer",
    layers="h",
    norm="ln_f",
    before_attention=("ln_attn", "input_layernorm"),
    before_mlp=("ln_mlp", "post_attention_layernorm", "input_layernorm"),
    qkv=("self_attention.query_key_value",),
    fused=True,
    out="self_attention.dense",
    gate_up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
)
FAMILY: dict[str, Member] = {
    "llama": Member(),
    "smollm3": Member(),
    "mistral": Member(),
    "qwen2": Member(),
    "qwen3": Member(),
    "phi3": Member(Names(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",))),
    "gemma": Member(norm_offset=1.0, rooted=True),
    "gemma2": Member(_SANDWICHED, norm_offset=1.0, rooted=True, query_scalar="query_pre_attn_scalar"),
    "gemma3_text": Member(
        _SANDWICHED,
        ropes=True,
        foreign=("use_bidirectional_attention",),
        norm_offset=1.0,
        rooted=True,
        query_scalar="query_pre_attn_scalar",
    ),
    "granite": Member(
        embedding_factor="embedding_multiplier",
        scaling="attention_multiplier",
        residual_factor="residual_multiplier",
        logits_divisor="logits_scaling",
    ),
    "starcoder2": Member(Names(gate_up=("mlp.c_fc",), down="mlp.c_proj"), gated=False, centred=True),
    "stablelm": Member(
        Names(before_mlp=("post_attention_layernorm", "input_layernorm")),
        centred=True,
        parallel=("use_parallel_residual",),
        foreign=("qk_layernorm",),
    ),
    "gpt_neox": Member(
        Names(
            decoder="gpt_neox",
            norm="final_layer_norm",
            qkv=("attention.query_key_value",),
            fused=True,
            out="attention.dense",
            gate_up=("mlp.dense_h_to_4h",),
            down="mlp.dense_4h_to_h",
        ),
        gated=False,
        centred=True,
        parallel=("use_parallel_residual",),
    ),
    "falcon": Member(
        _FALCON,
        gated=False,
        centred=True,
        parallel=("parallel_attn", "new_decoder_architecture"),
    ),
    "bloom": Member(
        replace(_FALCON, embedding_norm="word_embeddings_layernorm"),
        gated=False,
        centred=True,
        alibi=True,
        act="gelu_pytorch_tanh",
        foreign=("apply_residual_connection_post_layernorm",),
    ),
}
"""Model types that the kernels express, and what of them is not Llama's; biases and norms of heads are read off the
model."""
