"""Captured graphs as data: what `model.pt` holds of them."""

from __future__ import annotations

import io
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

Shapes = tuple[tuple[int, ...], ...]
Specs = list[tuple[tuple[int, ...], torch.dtype]]


@dataclass
class Graph:
    """One compiled graph.

    Attributes:
        key: the builder's name for it.
        nodes: its operations, in a form that torch can save.
        constants: tensors that the capture folded in.
        code: the operations as text: what the compile cache is keyed by.
        weights: names of the parameters that a checkpoint fills, in order of the graph's inputs.
        states: names of the parameters that stay on the device, likewise.
        outputs: how many results the host sees; one new value per state follows them.
        weight_specs: shape and dtype of each weight; the same for `state_specs`, `in_specs` and `out_specs`.
    """

    key: str
    nodes: list[Any]
    constants: dict[str, torch.Tensor]
    code: str
    weights: list[str]
    states: list[str]
    outputs: int
    weight_specs: Specs
    state_specs: Specs
    in_specs: Specs
    out_specs: Specs

    @property
    def shapes(self) -> Shapes:
        """The input shapes, which choose the graph of a call."""
        return tuple(shape for shape, _ in self.in_specs)


class Reference(str):
    """The name of a node where another node uses its result."""

    __slots__ = ()


def dump(graph: fx.Graph) -> list[Any]:
    """Return the nodes of a graph as plain data."""

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return Reference(value.name)
        if isinstance(value, tuple):
            return tuple(map(plain, value))
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return value

    return [(node.op, _name(node), plain(node.args), plain(node.kwargs), node.name) for node in graph.nodes]


def restore(nodes: list[Any], constants: dict[str, torch.Tensor]) -> fx.GraphModule:
    """Make a graph of its nodes again."""
    graph, known = fx.Graph(), {}
    for op, name, args, kwargs, node in nodes:
        found = fx.node.map_aggregate((args, kwargs), lambda x: known[x] if isinstance(x, Reference) else x)
        known[node] = graph.create_node(op, _target(op, name), *found, node)
    return fx.GraphModule(constants, graph)


def _name(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target.name()
    return getattr(node.target, "__name__", str(node.target))


def _target(op: str, name: str) -> Any:
    if op != "call_function":
        return name
    if "::" not in name:
        return getattr(operator, name)
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")


def pack(ranks: int, graphs: list[Graph]) -> torch.Tensor:
    """Return a program as bytes in a tensor, so that it can be a buffer of a TorchScript module."""
    file = io.BytesIO()
    content = {"ranks": ranks, "graphs": [vars(graph) for graph in graphs]}
    torch.save(content, file, pickle_protocol=4)  # older protocols cannot pickle a memory format
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def unpack(program: torch.Tensor) -> tuple[int, list[Graph]]:
    """Return the ranks and graphs of a program."""
    content = torch.load(io.BytesIO(program.numpy().tobytes()), weights_only=False)
    return content["ranks"], [Graph(**graph) for graph in content["graphs"]]
