"""Gaudi's software: whether it is here, in which mode its process runs, and how it takes transformers over."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from langchain_accel.errors import DeviceUnavailable

PLUGIN = "habana-torch-plugin"
PAIR = {"optimum-habana": "1.21", PLUGIN: "1.24", "transformers": "4.55"}
"""Versions that belong together: optimum-habana 1.21.2, the last there is, checks for no others."""

INSTALL = (
    "in a virtual environment of its own, on an image or host with Intel's Gaudi software 1.24, "
    'pip install "langchain-accel[gaudi]" (see docs/gaudi.md)'
)
_MODE = "PT_HPU_LAZY_MODE"


def environment(mode: str, ranks: int, quant_config: str | None = None) -> tuple[tuple[str, str], ...]:
    """Return the variables that must be set before Gaudi's software is imported.

    The vendor takes an unset lazy mode for 0, transformers 4.55 and optimum-habana take it for 1.

    Args:
        mode: `"lazy"`, `"compile"` or `"eager"`.
        ranks: processes that hold one model together.
        quant_config: file with the settings of FP8, which models of optimum-habana look for as well.
    """
    variables = {
        _MODE: "1" if mode == "lazy" else "0",
        "WA_INDEX_COPY": "0",  # BLOOM writes its cache in place, and not by a product with [columns, columns] matrices
    }
    if ranks > 1:
        variables |= {
            "PT_HPU_ENABLE_LAZY_COLLECTIVES": "true",
            "DS_ACCELERATOR": "hpu",
            "PT_HPU_LAZY_ACC_PAR_MODE": "0",
            "PT_HPU_ENABLE_REFINE_DYNAMIC_SHAPES": "0",
        }
    if quant_config is not None:
        variables |= {"QUANT_CONFIG": quant_config, "EXPERIMENTAL_WEIGHT_SHARING": "FALSE"}
    return tuple(variables.items())


def require(mode: str) -> Any:
    """Import the bridge between torch and the device, in the mode asked for; return torch's module `hpu`.

    Raises:
        DeviceUnavailable: it is missing, imported in another mode already, or finds no device.
    """
    if find_spec("habana_frameworks") is None:
        msg = f"the gaudi device needs Intel's Gaudi software (habana_frameworks is missing): {INSTALL}"
        raise DeviceUnavailable(msg)
    imported = "habana_frameworks.torch" in sys.modules
    if not imported:
        os.environ.update(environment(mode, 1))
    try:
        import habana_frameworks.torch as bridge
        from habana_frameworks.torch.utils.internal import is_lazy
    except ImportError as error:
        msg = f"Gaudi's software is installed and cannot be imported ({error}): {INSTALL}"
        raise DeviceUnavailable(msg) from error
    if is_lazy() != (mode == "lazy"):
        there, asked = ("lazy", "eager") if is_lazy() else ("eager", "lazy")
        msg = (
            f"habana_frameworks was imported in {there} mode already and mode={mode!r} needs {asked} mode; set {_MODE}="
            f"{int(mode == 'lazy')} before anything imports it, or use the model class, which starts its own process"
        )
        raise DeviceUnavailable(msg)
    if not bridge.hpu.is_available():
        msg = "no Gaudi device is on this machine, or another process holds it: hl-smi shows them"
        raise DeviceUnavailable(msg)
    return bridge.hpu


def adapt() -> None:
    """Let optimum-habana take transformers over, for all of this process.

    Raises:
        DeviceUnavailable: a package is missing, or versions do not belong together.
    """
    for package, wanted in PAIR.items():
        found = _version(package)
        if not f"{found}.".startswith(f"{wanted}."):
            msg = (
                f"the gaudi device needs {package} {wanted} and {'there is ' + found if found else 'it is missing'}; "
                f"{', '.join(f'{name} {pinned}' for name, pinned in PAIR.items())} belong together: {INSTALL}; "
                'or set GaudiOptions(stack="transformers"), which needs no optimum-habana'
            )
            raise DeviceUnavailable(msg)
    try:
        with _pip_that_answers():
            modeling = import_module("optimum.habana.transformers.modeling_utils")
    except ImportError as error:
        msg = f"optimum-habana is installed and cannot be imported ({error}): {INSTALL}"
        raise DeviceUnavailable(msg) from error
    modeling.adapt_transformers_to_gaudi()


@contextmanager
def _pip_that_answers() -> Iterator[None]:
    """Let `pip list` name the plugin's version.

    optimum-habana runs it by way of a shell when it is imported, and fails with an IndexError where the first `pip` on
    the path is another environment's, or there is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        pip = Path(folder) / "pip"
        pip.write_text(f"#!/bin/sh\necho '{PLUGIN} {_version(PLUGIN)}'\n", encoding="ascii")
        pip.chmod(0o700)
        path = os.environ.get("PATH", "")
        os.environ["PATH"] = f"{folder}{os.pathsep}{path}"
        try:
            yield
        finally:
            os.environ["PATH"] = path


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
