"""What is refused before MindSpore is asked, which is not needed here."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from langchain_accel import AscendLLM, AscendOptions, ChatAscend
from langchain_accel.devices import ascend
from langchain_accel.devices.base import Plan
from langchain_accel.errors import DeviceUnavailable, PlanRejected
from tests.tiny_checkpoint import make_tiny_checkpoint

CPU = AscendOptions(target="cpu")


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("refusals") / "qwen3", model_type="qwen3")


@pytest.mark.parametrize(("options", "dtype"), [(CPU, "bfloat16"), (AscendOptions(), "float32")])
def test_a_dtype_without_kernels_is_refused(tiny: Path, options: AscendOptions, dtype: str) -> None:
    with pytest.raises(PlanRejected, match=rf"dtype='{dtype}' has no kernels on target='{options.target}'"):
        ascend.load(Plan("ascend", str(tiny), max_len=64, dtype=dtype), options)


def test_ranks_that_cannot_share_a_model_are_refused(tiny: Path, qwen3: Path) -> None:
    """Mutant seen to fail: nobody looks, and mindformers is the first to."""
    for folder in (tiny, qwen3):
        with pytest.raises(PlanRejected, match="tensor_parallel_size=3 cannot share 4 heads, 2 KV heads"):
            ascend.load(Plan("ascend", str(folder), max_len=64, tensor_parallel_size=3), CPU)


def test_a_plan_that_does_not_fit_is_refused_with_the_numbers(tiny: Path) -> None:
    with pytest.raises(PlanRejected, match=r"KV cache of 10000000 rows x 512 columns"):
        ascend.load(Plan("ascend", str(tiny), rows=10_000_000, max_len=512), CPU)


@pytest.mark.skipif(find_spec("mindspore") is not None, reason="MindSpore is here")
@pytest.mark.parametrize("model", [ChatAscend, AscendLLM])
@pytest.mark.parametrize("python", [None, sys.executable])
def test_an_interpreter_without_mindspore_is_told_how_to_get_it(
    tiny: Path, model: type[ChatAscend], python: str | None
) -> None:
    """This one's own, found out without starting a process, and one that is named."""
    with pytest.raises(DeviceUnavailable, match=r'pip install "langchain-accel\[ascend\]"'):
        model(model=str(tiny), max_len=64, options=AscendOptions(python=python)).invoke("x")
