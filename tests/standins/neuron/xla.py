"""What optimum-neuron writes in XLA's and NKI's terms, in torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.standins.neuron.machine import MACHINE
from tests.standins.neuron.operators import OPS


class HloType:
    """What `tensor.dtype` is inside an `@xla_hlo_call` function: `dtype[shape].Operator(...)`."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...] = ()) -> None:
        self.torch_dtype, self.shape = dtype, shape

    def __getitem__(self, shape: Any) -> HloType:
        return HloType(self.torch_dtype, tuple(shape))

    def Constant(self, constant_value: Any) -> torch.Tensor:  # noqa: N802 - XLA's names
        return torch.tensor(constant_value, dtype=self.torch_dtype)

    def DynamicUpdateSlice(self, tensor: HloTensor, update: HloTensor, *starts: Any) -> torch.Tensor:  # noqa: N802
        """Write `update` into `tensor` at these starts."""
        index = []
        for dim, start in enumerate(starts):
            size = update.t.shape[dim]
            value = (start.t if isinstance(start, HloTensor) else start).to(torch.int64)
            value = OPS.checked(value, tensor.t.shape[dim] - size)
            shape = [1] * tensor.t.dim()
            shape[dim] = -1
            index.append((torch.arange(size) + value).view(shape))
        return torch.index_put(tensor.t, index, update.t.to(tensor.t.dtype))

    def Rng(self, minimum: Any, maximum: Any, distribution: int = 1) -> torch.Tensor:  # noqa: N802
        """Uniform random numbers, drawn anew at every run."""
        uniform = OPS.rand(MACHINE.anchor, list(self.shape)).to(self.torch_dtype)
        return uniform * (maximum - minimum) + minimum


class HloTensor:
    """A tensor inside an `@xla_hlo_call` function."""

    class scribe:  # noqa: N801
        u32 = HloType(torch.int64)

    def __init__(self, t: torch.Tensor) -> None:
        self.t, self.sizes, self.dtype = t, tuple(t.shape), HloType(t.dtype)


def xla_hlo_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `torch_neuronx.xla_impl.ops.xla_hlo_call`."""
    return lambda *args: function(*[HloTensor(arg) if isinstance(arg, torch.Tensor) else arg for arg in args])


class Kernel:
    """A kernel that is launched as `kernel[grid](...)`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __getitem__(self, grid: Any) -> Kernel:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def nki_jit(*_: Any, **__: Any) -> type[Kernel]:
    """As `torch_neuronx.xla_impl.ops.nki_jit`."""
    return Kernel


def cumsum(x: torch.Tensor, out: torch.Tensor, axis: int = 1) -> None:
    """As the private NKI kernel."""
    out.copy_(torch.cumsum(x, dim=axis))


def attention(q: Any, k: Any, v: Any, scale: float, out: Any, kernel_name: str = "") -> None:
    """As the private NKI kernel: causal; `q`, `k`, `out` are `[batch * heads, width, length]`, `v` has width last."""
    scores = torch.bmm(q.transpose(1, 2).float(), k.float()) * scale
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    out.copy_(torch.bmm(weights, v.float()).transpose(1, 2).to(out.dtype))


class RmsNorm:
    """As `torch_neuronx.xla_impl.ops.RmsNorm`."""

    @staticmethod
    def apply(x: torch.Tensor, weight: torch.Tensor, eps: float, dim: int) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(dim, keepdim=True) + eps) * weight
