"""Linear layers with weights packed for the processor's matrix kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from langchain_accel.devices.base import Progress

Pack = Callable[[nn.Linear], nn.Module]


class PackedLinear(nn.Module):
    """A linear layer whose weight is laid out once by oneDNN instead of at every call.

    Attributes:
        in_features: width of the input.
        out_features: width of the output.
        weight: opaque packed `[out_features, in_features]`.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()
        # A plain attribute: an opaque tensor can be neither moved, cast nor saved as a parameter can.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())  # noqa: SLF001

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return `inputs @ weight.T + bias` for `[..., in_features]` inputs."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")  # noqa: SLF001


def pack(linear: nn.Linear) -> nn.Module:
    """Return a packed replacement of a linear layer, or the layer itself where packing gains nothing here."""
    packs = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    if linear.weight.dtype is not torch.bfloat16 or not packs:
        return linear
    return PackedLinear(linear)


def replace(model: nn.Module, pack: Pack, progress: Progress, *, tied: bool = False) -> None:
    """Replace every linear layer of a model by its packed form, one at a time, so that no two copies pile up.

    Args:
        model: changed in place.
        pack: makes the packed form of a layer.
        progress: told about packing.
        tied: also replace a layer whose weight another module uses as well (a head tied to the embedding): its packed
            form is a second copy, which pays where it is much smaller.
    """
    straighten(model)
    users: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        users[id(parameter)] = users.get(id(parameter), 0) + 1
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and (tied or users[id(child.weight)] == 1)
    ]
    for done, (parent, name) in enumerate(places):
        progress("packing weights", done, len(places))
        setattr(parent, name, pack(getattr(parent, name)))
    for parameter in model.parameters():
        # What is left (embeddings, norms) moves out of the memory-mapped file, which would stay mapped as a whole.
        parameter.data = parameter.data.clone()
    progress("packing weights", len(places), len(places))


def straighten(model: nn.Module) -> None:
    """Replace GPT-2's Conv1D, which are linear layers with their weights the other way round, by linear layers."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__ == "Conv1D"
    ]
    for parent, name, child in places:
        linear = nn.Linear(*child.weight.shape, device="meta")
        linear.weight = nn.Parameter(child.weight.detach().t().contiguous(), requires_grad=False)
        linear.bias = nn.Parameter(child.bias.detach(), requires_grad=False)
        setattr(parent, name, linear)
