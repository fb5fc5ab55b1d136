"""Which models optimum-habana computes as transformers does: those that a test was seen to compare."""

from __future__ import annotations

from typing import Any

from langchain_accel.errors import ModelRejected

VERIFIED = frozenset({"bloom", "falcon", "gpt_neox", "llama", "mistral", "mixtral", "qwen2", "qwen3"})
"""Model types whose greedy tokens equal transformers' in tests/gaudi, for optimum-habana 1.21.2."""

WRONG = {
    "gemma": "a norm is applied before the residual is added",
    "gemma2": "with flash attention its tokens differ",
    "opt": "positions of decoded tokens are off by one and ignore padding",
}
"""Model types seen to be computed wrongly, without an error, by optimum-habana 1.21.2."""

_ROPES = frozenset({"default", "linear", "llama3", "yarn"})


def check(config: Any, max_len: int, *, allow_unverified: bool) -> None:
    """Refuse a model that may be answered wrongly.

    Args:
        config: transformers' config object.
        max_len: columns of a row.
        allow_unverified: let model types pass that nobody compared.

    Raises:
        ModelRejected: names the reason.
    """
    kind = config.model_type
    if kind not in VERIFIED and not allow_unverified:
        known = f"; it is known to answer wrongly: {WRONG[kind]}" if kind in WRONG else ""
        msg = (
            f"model type {kind!r} was not verified on optimum-habana, which computes some models wrongly without an "
            f"error{known}. Verified are {', '.join(sorted(VERIFIED))}; set "
            'GaudiOptions(stack="transformers"), or allow_unverified=True at your own risk'
        )
        raise ModelRejected(msg)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is not None and window < max_len:
        msg = (
            f"this {kind} model attends to windows of {window} columns, which rows that are written at one shared "
            f"column cannot keep; set max_len <= {window}"
        )
        raise ModelRejected(msg)
    ropes = getattr(config, "rope_scaling", None) or {}
    rope = ropes.get("rope_type", ropes.get("type", "default"))
    if rope not in _ROPES:
        msg = f"the rope scaling {rope!r} of this {kind} model changes with the length of a sequence, which rows share"
        raise ModelRejected(msg)
