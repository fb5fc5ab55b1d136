"""FP8 through Intel Neural Compressor, as its JSON settings say."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langchain_accel.errors import DeviceUnavailable, PlanRejected

_KERNELS = ("cast_to_fp8_v2", "cast_from_fp8", "fp8_gemm_v2")


def check(quant_config: str, dtype: str) -> None:
    """Refuse settings that cannot be served, before anything is loaded or imported.

    Raises:
        PlanRejected: the file is none, asks for a measurement, or the model is not computed in bfloat16.
    """
    try:
        settings = json.loads(Path(quant_config).read_text(encoding="utf-8"))
        mode = settings["mode"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"quant_config={quant_config!r} is no JSON file of Intel Neural Compressor with a mode: {error!r}"
        raise PlanRejected(msg) from error
    if mode != "QUANTIZE":
        msg = (
            f"quant_config={quant_config!r} has mode {mode!r}; measure first, with optimum-habana's own scripts, on "
            'the same number of Gaudi, then serve with mode "QUANTIZE"'
        )
        raise PlanRejected(msg)
    if dtype not in ("auto", "bfloat16"):
        msg = f"FP8 replaces bfloat16 arithmetic, got dtype={dtype!r}; leave dtype out"
        raise PlanRejected(msg)


def require() -> None:
    """Refuse where FP8 cannot be computed.

    Raises:
        DeviceUnavailable: the compressor or the device's FP8 kernels are missing.
    """
    import torch

    if find_spec("neural_compressor") is None:
        msg = "quant_config needs Intel Neural Compressor: pip install neural-compressor-pt"
        raise DeviceUnavailable(msg)
    missing = [name for name in _KERNELS if not hasattr(torch.ops.hpu, name)]
    if missing:
        msg = f"quant_config needs FP8 kernels that this Gaudi's software lacks: {', '.join(missing)}; leave it out"
        raise DeviceUnavailable(msg)


def quantised(model: Any, quant_config: str) -> Any:
    """Return the model with its linear layers and attention in FP8, ready to run."""
    from habana_frameworks.torch import core
    from neural_compressor.torch.quantization import FP8Config, convert

    converted = convert(model, FP8Config.from_json_file(quant_config))
    core.hpu_initialize(converted, mark_only_scales_as_const=True)
    return converted
