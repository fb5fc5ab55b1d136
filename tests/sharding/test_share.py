"""A model that was not sharded is refused; one that was fits its ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from langchain_accel.devices.base import silent
from langchain_accel.devices.torch_rows import linears
from langchain_accel.devices.torch_rows.sharding import model, own, share
from langchain_accel.devices.torch_rows.sharding.layers import SplitEmbedding, SummedLinear
from langchain_accel.devices.torch_rows.sharding.strategy import Sharder
from langchain_accel.errors import ModelRejected
from tests.tiny_models import make


class OneOfTwo:
    """Stands for a group: this process is one of two ranks, and its sums stay its own."""

    def __init__(self, index: int) -> None:
        self.rank = SimpleNamespace(index=index, size=2)

    def sum(self, tensor: torch.Tensor) -> None:
        """Nobody else is there."""


def load(folder: Path, index: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    loaded: nn.Module = model.load_share(folder, config, dtype, Sharder.OWN, OneOfTwo(index), trust_remote_code=False)
    return loaded


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("phi3", tmp_path_factory.mktemp("share") / "phi3")


def test_each_rank_holds_its_share(phi3: Path) -> None:
    """Two shares are the model once, but for what is no matrix."""
    from transformers import AutoModelForCausalLM

    whole = sum(share.matrices(AutoModelForCausalLM.from_pretrained(phi3)).values())
    assert [sum(share.matrices(load(phi3, index)).values()) for index in range(2)] == [whole // 2] * 2


@pytest.mark.parametrize("left_whole", ["mlp.gate_up_proj", "every layer"])
def test_an_unsharded_model_is_refused(phi3: Path, monkeypatch: pytest.MonkeyPatch, left_whole: str) -> None:
    """The mutant is in the test: a sharder that does nothing, and one that forgets a matrix."""
    if left_whole == "every layer":
        monkeypatch.setattr(own, "split_layers", lambda *_: None)
    else:
        split = own._split
        monkeypatch.setattr(
            own, "_split", lambda layer, *rest: layer if layer.out_features == 128 else split(layer, *rest)
        )
    with pytest.raises(ModelRejected, match=r"each of 2 ranks would hold \d+% of the weights of Phi3.*gate_up_proj"):
        load(phi3)


def test_nothing_of_the_file_stays_mapped(phi3: Path) -> None:
    """Mutant seen to fail: what every rank keeps whole is left as a page of the file."""
    kept = load(phi3)
    assert str(phi3) not in Path("/proc/self/maps").read_text()
    assert all(parameter.dtype == torch.float32 for parameter in kept.parameters())


def test_shards_are_packed_like_any_linear_layer() -> None:
    """The layer inside a sum is packed, and the sum stays. Mutant seen to fail: a `SummedLinear` that is an
    `nn.Linear` itself, which packing replaces with its sum."""
    torch.manual_seed(0)
    summed: list[torch.Tensor] = []
    layer = nn.Sequential(SummedLinear(torch.randn(32, 64).bfloat16(), torch.randn(32).bfloat16(), summed.append))
    inputs = torch.randn(3, 64).bfloat16()
    expected = layer(inputs)
    linears.replace(layer, linears.pack, silent)
    if type(layer[0].linear) is nn.Linear:
        pytest.skip("this processor packs no bfloat16 weights")
    assert len(summed) == 1
    torch.testing.assert_close(layer(inputs), expected, rtol=2e-2, atol=2e-1)
    assert len(summed) == 2


def test_a_scaled_embedding_stays_scaled() -> None:
    """Gemma's embedding multiplies what it looks up; both ranks' columns make the whole."""

    class Scaled(nn.Embedding):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return super().forward(tokens) * 3

    table = torch.arange(24.0).reshape(6, 4)
    tokens = torch.tensor([[1, 5]])
    parts = []
    for columns in (slice(0, 2), slice(2, 4)):
        part = Scaled.from_pretrained(table[:, columns])
        parts.append(SplitEmbedding(part, 4, columns, lambda _: None)(tokens))
    torch.testing.assert_close(parts[0] + parts[1], table[tokens] * 3)
