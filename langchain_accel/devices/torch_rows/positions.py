"""How many columns a model's positions reach."""

from __future__ import annotations

from typing import Any

from langchain_accel.errors import PlanRejected

_MOVING = ("longrope", "dynamic", "su")  # frequencies of all rows in a step would follow its longest row


def check_positions(config: Any, max_len: int) -> None:
    """Refuse a `max_len` that a model's positions cannot reach.

    Raises:
        PlanRejected: names both numbers.
    """
    limit, reason = position_limit(config)
    if limit is not None and max_len > limit:
        msg = f"max_len={max_len} is more than the {limit} positions of this model ({reason}); set max_len <= {limit}"
        raise PlanRejected(msg)


def position_limit(config: Any) -> tuple[int | None, str]:
    """Return the largest number of columns and the config entry it comes from; None where nothing limits them.

    Args:
        config: a transformers config.
    """
    if getattr(config, "alibi", False) or config.model_type == "bloom":
        return None, "ALiBi"
    if config.model_type == "mpt":
        return config.max_seq_len, "max_seq_len"
    limit = getattr(config, "max_position_embeddings", None)
    reason = "max_position_embeddings"
    if limit is None or limit < 1:
        return None, "no max_position_embeddings"
    for rope in _ropes(config):
        kind = rope.get("rope_type", rope.get("type"))
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if kind in _MOVING:
            limit = min(limit, original or limit)
            reason = f"rope type {kind!r} changes its frequencies beyond them, which rows of one step cannot share"
        elif kind == "yarn" and original and rope.get("factor"):
            limit = max(limit, int(original * rope["factor"]))
            reason = "yarn: original_max_position_embeddings * factor"
    return limit, reason


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Rope parameters of a config: one set, or one per layer type."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [entry for entry in rope.values() if isinstance(entry, dict)]
    return nested or [rope]
