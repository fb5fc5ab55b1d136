"""LangChain's standard suites on `ChatXeon` and on `ChatHuggingFace(HuggingFacePipeline)`, in one run.

    python benchmarks/conformance.py [--reasons] [--only EXPRESSION] [--random | --model FOLDER]

Both get the same tests, the same switches and the same model, in float32, greedy, answers of at most 64 tokens. The
model is the fitted fixture; `--random` takes random weights instead, which shows what grammars do alone. The peer is
the package `langchain-huggingface`; where it is missing, its column stays empty. Ends with an error where one of our
tests fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from tests.standard import fitted_suites as suite
from tests.standard.test_integration import OnXeon, TestChatXeon, TestChatXeonUnit, _loaded

__all__ = ["TestChatXeon", "TestChatXeonUnit", "_loaded"]

try:
    from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
except ImportError:
    ChatHuggingFace = None

OURS, PEER = "ChatXeon", "ChatHuggingFace"
PACKAGES = ("langchain-core", "langchain-tests", "langchain-huggingface", "transformers", "torch")


@cache
def _pipeline() -> Any:
    return HuggingFacePipeline.from_model_id(
        str(suite.FITTED),
        task="text-generation",
        model_kwargs={"dtype": "float32"},
        pipeline_kwargs={"max_new_tokens": 64, "do_sample": False, "return_full_text": False},
    )


class OnPeer(OnXeon):
    """The peer, with our switches."""

    @property
    def chat_model_class(self) -> Any:
        """The peer's class."""
        return ChatHuggingFace

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """The peer's model: one pipeline for all tests."""
        return {"llm": _pipeline()}


if ChatHuggingFace is not None:

    class TestChatHuggingFaceUnit(OnPeer, ChatModelUnitTests):
        """With the suite's own standard parameters."""

    class TestChatHuggingFace(OnPeer, ChatModelIntegrationTests):
        """The same switches as ours."""

        invoke_with_cache_read_input = TestChatXeon.invoke_with_cache_read_input


class Outcomes:
    """A pytest plugin: how each test of each class went, and why."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.of: dict[str, dict[str, str]] = {OURS: {}, PEER: {}}
        self.why: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of a test; a set-up that fails is a failure."""
        if report.when != "call" and report.outcome == "passed":
            return
        _, kind, test = report.nodeid.split("::")
        model, unit = kind.removeprefix("Test").removesuffix("Unit"), kind.endswith("Unit")
        name = f"{'unit' if unit else 'integration'} {test}"
        xfail = hasattr(report, "wasxfail")
        self.of[model][name] = {"passed": "pass", "failed": "FAIL", "skipped": "xfail" if xfail else "skip"}[
            report.outcome
        ]
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            self.why[model, name] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            self.why[model, name] = (crash.message if crash else str(report.longrepr)).splitlines()[0][:76]


def _print(outcomes: Outcomes, *, reasons: bool) -> None:
    ours, peer = outcomes.of[OURS], outcomes.of[PEER]
    names = list(dict.fromkeys([*ours, *peer]))
    width = max(map(len, names), default=0)
    print("\n" + ", ".join(f"{package} {_version(package)}" for package in PACKAGES))
    print(f"\n{'':{width}}  {OURS:8}  {PEER}")
    for name in names:
        why = outcomes.why.get((PEER, name)) or outcomes.why.get((OURS, name)) or ""
        line = f"{name:{width}}  {ours.get(name, '-'):8}  {peer.get(name, '-'):5}"
        print(f"{line}  {why if reasons else ''}".rstrip())
    print()
    for model in (OURS, PEER):
        if not outcomes.of[model]:
            print(f"{model}: not run; pip install langchain-huggingface")
            continue
        count = Counter(outcomes.of[model].values())
        print(f"{model}: {count['pass']} pass, {count['FAIL']} fail, {count['skip']} skip, {count['xfail']} xfail")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


def _randomized(folder: Path, source: Path) -> Path:
    """Write a copy of a model folder whose weights are random."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(source, folder)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(source, initializer_range=0.2)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def main() -> int:
    """Run both columns; return 1 where one of ours fails, or none ran."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reasons", action="store_true", help="say why a test failed or was skipped")
    parser.add_argument("--only", default="", help="run tests whose names match this pytest expression")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--random", action="store_true", help="random weights instead of the fitted ones")
    model.add_argument("--model", type=Path, default=suite.FITTED, help="another model folder")
    arguments = parser.parse_args()
    outcomes = Outcomes()
    quiet = ["-q", "--no-header", "--no-summary", "--tb=no", "--benchmark-disable", "-W", "ignore"]
    with tempfile.TemporaryDirectory() as temporary:
        chosen = _randomized(Path(temporary) / "random", suite.FITTED) if arguments.random else arguments.model
        suite.FITTED = chosen
        pytest.main([__file__, *quiet, "-k", arguments.only], plugins=[outcomes])
    _print(outcomes, reasons=arguments.reasons)
    return int("FAIL" in outcomes.of[OURS].values() or not outcomes.of[OURS])


if __name__ == "__main__":
    sys.exit(main())
