"""Operators that stand in captured graphs as nodes of their own: collectives, random numbers, checked indices."""

from __future__ import annotations

from typing import Any

import torch

from tests.standins.neuron.machine import MACHINE

NAMESPACE = "neuron_standin"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
LIBRARY.define("all_gather(Tensor x, int dim, int world) -> Tensor")
LIBRARY.define("all_reduce(Tensor x, int world) -> Tensor")
LIBRARY.define("rand(Tensor anchor, int[] size) -> Tensor", tags=[torch.Tag.nondeterministic_seeded])
LIBRARY.define("checked(Tensor start, int last) -> Tensor")
LIBRARY.define("load_rank(int session, Tensor program, int rank, int ranks, str[] names, Tensor[] tensors) -> int")
LIBRARY.define("run(int session, Tensor program, Tensor[] inputs) -> Tensor[]")
OPS = getattr(torch.ops, NAMESPACE)


def _checked(start: torch.Tensor, last: int) -> torch.Tensor:
    """Refuse what hardware would clamp: a write past the end of a buffer lands on its last place, another's."""
    if not 0 <= int(start) <= last:
        msg = f"index {int(start)} is out of range 0 to {last}: hardware would clamp it and overwrite another row"
        raise IndexError(msg)
    return start.clone()


# While a graph is captured there is one rank: collectives only need to give the right shapes. See `device.lockstep`.
_CAPTURE = "CompositeExplicitAutograd"
LIBRARY.impl("all_gather", lambda x, dim, world: torch.cat([x] * world, dim), _CAPTURE)
LIBRARY.impl("all_reduce", lambda x, world: x.clone(), _CAPTURE)
LIBRARY.impl("rand", lambda anchor, size: torch.rand(size), _CAPTURE)
LIBRARY.impl("checked", _checked, _CAPTURE)


def gather(x: torch.Tensor, dim: int, group: Any = None) -> torch.Tensor:
    """Concatenate the ranks' values along a dimension."""
    world = (group or MACHINE.group).size()
    return x if world == 1 else OPS.all_gather(x, dim % x.dim(), world)


def reduce(x: torch.Tensor, group: Any = None) -> torch.Tensor:
    """Sum the ranks' values."""
    world = (group or MACHINE.group).size()
    return x if world == 1 else OPS.all_reduce(x, world)


def argmax(tensor: torch.Tensor, dim: int, gather_dim: int, keepdim: bool = False, process_group: Any = None) -> Any:  # noqa: FBT002
    """As `neuronx_distributed.operators.argmax`."""
    return torch.argmax(gather(tensor, gather_dim, process_group), dim=dim, keepdim=keepdim)


def topk(tensor: torch.Tensor, k: int, dim: int, gather_dim: int, process_group: Any = None, **_: Any) -> Any:
    """As `neuronx_distributed.operators.topk`."""
    return torch.topk(gather(tensor, gather_dim, process_group), k, dim=dim)
