"""An interpreter with the stand-in, and a file for its counters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gaudi.helpers import PYTHON, interpreter

os.environ["PT_HPU_LAZY_MODE"] = "0"  # or transformers would import Gaudi's software here, where it finds it


@pytest.fixture(scope="session", autouse=True)
def _interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    os.environ[PYTHON] = str(interpreter(tmp_path_factory.mktemp("gaudi")))
    yield
    del os.environ[PYTHON]


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """File where devices that are loaded from here on leave their counts."""
    file = tmp_path_factory.mktemp("counters") / "counts"
    os.environ["HABANA_STANDIN_COUNTERS"] = str(file)
    yield file
    del os.environ["HABANA_STANDIN_COUNTERS"]
