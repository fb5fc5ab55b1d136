"""Wider heads that compute the same."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from tools.reader.widen import widen  # noqa: E402


def test_wider_heads_compute_the_same() -> None:
    """Mutants: the rotary base left as it was; queries not scaled; halves not kept apart."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=16, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=3, head_dim=12, rope_theta=1e6, initializer_range=0.3,
    )  # fmt: skip
    narrow = LlamaForCausalLM(config).eval()
    wide = widen(narrow, 16)
    assert wide.config.head_dim * wide.config.num_attention_heads == wide.config.hidden_size
    tokens = torch.randint(0, 64, (2, 50))
    with torch.inference_mode():
        torch.testing.assert_close(wide(tokens).logits, narrow(tokens).logits, atol=1e-4, rtol=1e-4)
