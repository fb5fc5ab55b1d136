"""The stand-in of Gaudi's software is strict: what a Gaudi cannot do raises here, or does the same harm.

It needs a process of its own, which .ci/gaudi gives it: `PYTHONPATH=tests/standins/habana PT_HPU_LAZY_MODE=1`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("habana_frameworks") is None or os.environ.get("PT_HPU_LAZY_MODE") != "1":
    pytest.skip("needs a process of its own: .ci/gaudi gives it one", allow_module_level=True)

import habana_frameworks.torch as bridge
import torch
from habana_frameworks.torch.hpu import wrap_in_hpu_graph
from torch import nn

COUNTERS = bridge.COUNTERS
EAGER = [sys.executable, "-W", "ignore", "-c"]


@pytest.fixture(autouse=True)
def _from_zero() -> None:
    bridge.core.mark_step()
    COUNTERS.reset()


class Twice(nn.Module):
    """Twice its input, plus what an attribute holds."""

    def __init__(self) -> None:
        super().__init__()
        self.held = torch.ones(3).to("hpu")
        self.ran = 0

    def forward(self, x: torch.Tensor, factor: int = 2, more: Any = None) -> torch.Tensor:
        self.ran += 1
        return x * factor + self.held


def of(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers).to("hpu")


def in_eager_mode(code: str) -> str:
    ran = subprocess.run(
        [*EAGER, f"import habana_frameworks.torch as bridge, torch\n{code}"],
        env={**os.environ, "PT_HPU_LAZY_MODE": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return ran.stdout + ran.stderr


def test_tensors_are_on_the_device() -> None:
    x = torch.zeros(2, 3, device="hpu")
    assert (x.device.type, (x + 1).device.type, x.cpu().device.type) == ("hpu", "hpu", "cpu")
    assert nn.Linear(3, 3).to("hpu").weight.device == torch.device("hpu:0")
    with pytest.raises(TypeError, match="copy it to host memory"):
        x.numpy()


def test_every_read_by_the_host_is_counted() -> None:
    """Mutant: only single values are counted."""
    x = of(1.0, 2.0)
    x.cpu()
    x[0].item()
    bool((x > 0).all())
    x.to("cpu")
    assert COUNTERS.host_reads == 4


def test_a_graph_is_captured_once_and_replayed_without_python() -> None:
    """Mutant: a replay calls the forward again."""
    module = wrap_in_hpu_graph(Twice())
    assert module(of(1, 2, 3)).tolist() == [3, 5, 7]
    assert module(of(4, 5, 6)).tolist() == [9, 11, 13]
    assert (module.ran, COUNTERS.captures, COUNTERS.replays) == (1, 1, 1)


@pytest.mark.parametrize("other", [{"x": (1,)}, {"factor": 3}, {"more": "word"}, {"more": [1]}])
def test_a_graph_is_kept_per_shapes_and_values(other: dict[str, Any]) -> None:
    """Mutants: keyed by shapes only; keyed by values only."""
    module = wrap_in_hpu_graph(Twice())
    for call in ({}, other):
        asked = {"x": (1, 2, 3), "factor": 2, "more": "a word", **call}
        module(of(*asked.pop("x")), **asked)
    assert COUNTERS.captures == 2


def test_outputs_are_overwritten_by_the_next_replay() -> None:
    """Mutant: a replay returns new tensors."""
    module = wrap_in_hpu_graph(Twice())
    first = module(of(1, 2, 3))
    second = module(of(4, 5, 6))
    assert first is second
    assert first.tolist() == [9, 11, 13]


def test_inputs_are_copied_in() -> None:
    """A graph reads its own buffers: what was given may change, and what changes in place is not seen outside."""

    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.add_(1) * 1

    module, x = wrap_in_hpu_graph(Counting()), of(1, 2)
    assert module(x).tolist() == [2, 3]
    assert x.tolist() == [1, 2]
    assert module(x).tolist() == [2, 3]


def test_what_is_no_argument_is_fixed_by_its_address() -> None:
    """Written in place it is seen, replaced it is not: the defect that silently gives wrong tokens."""
    module = wrap_in_hpu_graph(Twice())
    module(of(1, 2, 3))
    module.held.fill_(10)
    assert module(of(1, 2, 3)).tolist() == [12, 14, 16]
    module.held = of(0, 0, 0)
    assert module(of(1, 2, 3)).tolist() == [12, 14, 16]
    module.clear_cache()
    assert module(of(1, 2, 3)).tolist() == [2, 4, 6]


def test_writes_in_place_happen_once_per_call() -> None:
    """Mutant: a capture is replayed at once."""

    class Appends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cache = torch.zeros(3).to("hpu")

        def forward(self, place: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return self.cache.index_add_(0, place, value)

    module = wrap_in_hpu_graph(Appends())
    for place in range(3):
        module(torch.tensor([place]).to("hpu"), of(place + 1.0))
    assert module.cache.tolist() == [1, 2, 3]


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: bool(x.any())])
def test_a_read_while_capturing_raises(read: Any) -> None:
    """Mutant: the value of the capture is baked in."""

    class Reads(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            read(x)
            return x

    with pytest.raises(RuntimeError, match="read by the host while an HPU graph is captured"):
        wrap_in_hpu_graph(Reads())(of(1, 2))
    assert of(1).tolist() == [1], "the stream goes on after a failed capture"


def test_another_thread_must_not_come_in_while_capturing() -> None:
    """Mutant: the check of threads is left out."""
    other, failed = wrap_in_hpu_graph(Twice()), list[str]()

    class Waits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def enter() -> None:
                try:
                    other(of(1, 2, 3))
                except RuntimeError as error:
                    failed.append(str(error))

            thread = threading.Thread(target=enter)
            thread.start()
            thread.join()
            return x

    wrap_in_hpu_graph(Waits())(of(1))
    assert failed == ["another thread captures an HPU graph: one thread at a time may use the device"]


def test_graphs_may_be_bypassed_and_bounded() -> None:
    module = wrap_in_hpu_graph(Twice(), max_graphs=1)
    module(of(1, 2, 3), bypass_hpu_graphs=True)
    module(of(1, 2, 3))
    module(of(1, 2, 3), factor=5)
    assert (COUNTERS.captures, COUNTERS.bypasses, module.ran) == (1, 2, 3)


def test_recipes_are_counted_by_content() -> None:
    """Mutant: a recipe per run."""
    before = len(COUNTERS.recipes)
    for length in (5, 5, 6):
        x = torch.ones(length).to("hpu")
        bridge.core.mark_step()
        ((x + 1) * 3).cpu()
    assert len(COUNTERS.recipes) - before == 4  # two lengths of a copy, two of the arithmetic
    assert COUNTERS.runs == 6


def test_lazy_mode_takes_tensors_of_the_host_and_eager_mode_does_not() -> None:
    """Mutant: `_refuse_mixing` only counts."""
    assert (of(1, 2) + torch.tensor([1.0, 1.0])).tolist() == [2, 3]
    assert COUNTERS.mixed == 1
    said = in_eager_mode("print(torch.ones(2).to('hpu') + torch.ones(2))")
    assert "Expected all tensors to be on the same device" in said


def test_eager_mode_has_no_graphs_and_lazy_mode_no_compiler() -> None:
    said = in_eager_mode("bridge.hpu.wrap_in_hpu_graph(torch.nn.Linear(1, 1))")
    assert "HPU graphs need lazy mode" in said
    with pytest.raises(RuntimeError, match="needs eager mode"):
        torch.compile(Twice(), backend="hpu_backend")


def test_compilations_are_counted_per_signature() -> None:
    said = in_eager_mode(
        "f = torch.compile(lambda x, n: x * n, backend='hpu_backend')\n"
        "for length, n in ((2, 1), (2, 1), (3, 1), (2, 2)): f(torch.ones(length).to('hpu'), n)\n"
        "print('compilations', bridge.COUNTERS.compilations)"
    )
    assert "compilations 3" in said


@pytest.mark.parametrize("causal", [True, False])
def test_the_fused_kernels_are_what_they_fuse(causal: bool) -> None:
    from habana_frameworks.torch.hpex.kernels import FusedSDPA
    from habana_frameworks.torch.hpex.normalization import FusedRMSNorm

    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    want = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)
    got = FusedSDPA.apply(query.to("hpu"), key.to("hpu"), value.to("hpu"), None, 0.0, causal)
    assert torch.allclose(got.cpu(), want, atol=1e-5)
    x, weight = torch.randn(2, 8), torch.randn(8)
    want = nn.functional.rms_norm(x, (8,), weight, 1e-5)
    assert torch.allclose(FusedRMSNorm.apply(x.to("hpu"), weight.to("hpu"), 1e-5).cpu(), want, atol=1e-5)
