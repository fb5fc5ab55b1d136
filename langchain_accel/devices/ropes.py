"""Rotary positions of checkpoints that are newer than the transformers that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_accel.errors import ModelRejected


def adopt(config: Any, written: Mapping[str, Any]) -> None:
    """Read `rope_parameters`, which transformers 5 writes and 4 ignores: 4 would take the default base instead.

    Args:
        config: transformers 4's config object, which is changed.
        written: what `config.json` says.

    Raises:
        ModelRejected: its rotary positions differ between layers, which transformers 4 has no words for.
    """
    ropes = written.get("rope_parameters")
    if not ropes or "rope_theta" in written:
        return
    if "rope_theta" not in ropes:
        msg = f"the rope_parameters of this {config.model_type} differ between layers, which is not served: {ropes}"
        raise ModelRejected(msg)
    for name, older in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        if name in ropes:
            setattr(config, older if hasattr(config, older) else name, ropes[name])
    scaling = {name: value for name, value in ropes.items() if name != "rope_theta"}
    config.rope_scaling = scaling if scaling.get("rope_type", "default") != "default" else None
    config.rope_parameters = None
