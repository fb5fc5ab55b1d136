"""The oracle of the reference device: a Llama that recomputes the whole sequence, one head at a time.

Nothing here is shared with the device, neither code nor layout: no cache, no batch, no padding. Rotary embeddings are
complex multiplications, and tokens are kept from seeing later ones by a lower triangle of weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

Array = npt.NDArray[np.float64]


class PlainLlama:
    """Reads a float32 Llama checkpoint and computes the logits of a sequence's last token."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        stored = load_file(folder / "model.safetensors")
        self.weights = {name: tensor.astype(np.float64) for name, tensor in stored.items()}
        self._known: dict[tuple[int, ...], npt.NDArray[np.float32]] = {}

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return `[vocab_size]` logits after the last of `tokens`."""
        key = tuple(int(token) for token in tokens)
        if key not in self._known:
            self._known[key] = self._compute(key).astype(np.float32)
        return self._known[key]

    def _compute(self, tokens: tuple[int, ...]) -> Array:
        x = self.weights["model.embed_tokens.weight"][list(tokens)]
        for layer in range(self.config["num_hidden_layers"]):
            x = x + self._attention(layer, x)
            x = x + self._feed_forward(layer, x)
        last: Array = self.weights["lm_head.weight"] @ self._normed(x[-1:], "model.norm")[0]
        return last

    def _attention(self, layer: int, x: Array) -> Array:
        name = f"model.layers.{layer}"
        heads, kv_heads, width = (
            self.config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
        )
        x = self._normed(x, f"{name}.input_layernorm")
        q, k, v = (x @ self.weights[f"{name}.self_attn.{part}_proj.weight"].T for part in "qkv")
        mixed = np.empty_like(q)
        for head in range(heads):
            shared = head * kv_heads // heads  # several query heads read one key and value head
            mine, theirs = slice(head * width, (head + 1) * width), slice(shared * width, (shared + 1) * width)
            queries, keys = self._turned(q[:, mine]), self._turned(k[:, theirs])
            scores = queries @ keys.T / width**0.5
            weights = np.exp(scores - scores.max(axis=1)[:, None]) * np.tri(len(x))
            mixed[:, mine] = weights @ v[:, theirs] / weights.sum(axis=1)[:, None]
        out: Array = mixed @ self.weights[f"{name}.self_attn.o_proj.weight"].T
        return out

    def _feed_forward(self, layer: int, x: Array) -> Array:
        name = f"model.layers.{layer}"
        x = self._normed(x, f"{name}.post_attention_layernorm")
        gate, up = (x @ self.weights[f"{name}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        out: Array = (gate / (1 + np.exp(-gate)) * up) @ self.weights[f"{name}.mlp.down_proj.weight"].T
        return out

    def _normed(self, x: Array, name: str) -> Array:
        mean_square = (x**2).mean(axis=1)[:, None]
        scaled: Array = x * self.weights[f"{name}.weight"] / np.sqrt(mean_square + self.config["rms_norm_eps"])
        return scaled

    def _turned(self, x: Array) -> Array:
        """Turn pair `i` of `[tokens, width]`, read as one complex number, by `position * theta ** (-2 i / width)`."""
        half = x.shape[1] // 2
        angles = np.outer(np.arange(len(x)), self.config["rope_theta"] ** (-np.arange(half) / half))
        turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.hstack([turned.real, turned.imag])
