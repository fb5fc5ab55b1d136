"""What importing the package costs and pulls in."""

from __future__ import annotations

import subprocess
import sys

import langchain_accel

HEAVY = ("torch", "transformers", "deepspeed", "mindspore", "optimum", "langchain_core", "llguidance", "numpy")


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_itself_imports_nothing_heavy() -> None:
    """Mutant seen to fail: the runtime imported at the top of the package."""
    loaded = run(f"import sys, langchain_accel; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded == "[]"


def test_every_class_imports_and_is_made_without_torch() -> None:
    """A machine without torch can import everything, and hears how to install it only when a model is loaded.

    Mutant seen to fail: torch imported at the top of devices/xeon.py.
    """
    code = """
import sys
for name in ("torch", "deepspeed", "mindspore", "optimum"):
    sys.modules[name] = None  # as if it were not installed
from langchain_accel import ChatXeon, XeonLLM, XeonOptions
ChatXeon(model='x', options=XeonOptions(threads=1)); XeonLLM(model='x')
print([m for m in ('torch', 'transformers') if sys.modules.get(m)])
"""
    assert run(code) == "[]"


def test_loading_without_torch_names_the_line_that_installs_it(tiny) -> None:
    code = f"""
import sys
sys.modules["torch"] = None  # as if it were not installed
from langchain_accel import XeonLLM
from langchain_accel.errors import DeviceUnavailable
try:
    XeonLLM(model={str(tiny)!r}).invoke('x')
except DeviceUnavailable as error:
    print(error)
"""
    assert 'pip install "langchain-accel[xeon]"' in run(code)


def test_public_names_are_the_ones_promised() -> None:
    assert langchain_accel.__all__ == [
        "AccelChatModel",
        "AccelError",
        "AccelLLM",
        "AscendLLM",
        "AscendOptions",
        "ChatAscend",
        "ChatGaudi",
        "ChatInferentia",
        "ChatXeon",
        "GaudiLLM",
        "GaudiOptions",
        "InferentiaLLM",
        "InferentiaOptions",
        "PromptTooLong",
        "XeonLLM",
        "XeonOptions",
        "__version__",
        "embedded_reader",
        "register",
    ]
    for name in langchain_accel.__all__:
        assert getattr(langchain_accel, name) is not None
    assert dir(langchain_accel) == sorted(langchain_accel.__all__)
