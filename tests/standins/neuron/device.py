"""The device of the stand-in: sessions that hold weights and state, and run captured graphs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List  # noqa: UP035 - TorchScript reads these

import torch
from torch import nn

from tests.standins.neuron.graphs import Graph, restore, unpack
from tests.standins.neuron.machine import COUNTERS, MACHINE, visible_cores
from tests.standins.neuron.operators import LIBRARY, OPS

Tensors = dict[str, torch.Tensor]


@dataclass
class Session:
    """A loaded program.

    Attributes:
        graphs: by the shapes of their inputs, with what runs them.
        weights: one dictionary per rank; the same for `states`.
    """

    graphs: dict[Any, tuple[Graph, torch.fx.GraphModule]]
    weights: list[Tensors] = field(default_factory=list)
    states: list[Tensors] = field(default_factory=list)


SESSIONS: dict[int, Session] = {}


def _load_rank(
    session: int, program: torch.Tensor, rank: int, ranks: int, names: list[str], tensors: list[torch.Tensor]
) -> int:
    """Give a rank its weights; the first one opens the session. State starts as zeros."""
    if rank == 0:
        compiled, graphs = unpack(program)
        if ranks != compiled:
            msg = f"the model was compiled for {compiled} ranks, got {ranks} checkpoints"
            raise RuntimeError(msg)
        if ranks > visible_cores():
            msg = f"NRT: {ranks} NeuronCores required, {visible_cores()} visible"
            raise RuntimeError(msg)
        session = max(SESSIONS, default=0) + 1
        SESSIONS[session] = Session({graph.shapes: (graph, restore(graph.nodes, graph.constants)) for graph in graphs})
    opened = SESSIONS[session]
    graph = next(iter(opened.graphs.values()))[0]
    given = dict(zip(names, tensors, strict=True))
    for name, (shape, dtype) in zip(graph.weights, graph.weight_specs, strict=True):
        if name not in given or tuple(given[name].shape) != shape or given[name].dtype != dtype:
            msg = f"rank {rank}: weight {name} does not match the compiled graph"
            raise RuntimeError(msg)
    opened.weights.append(given)
    opened.states.append(
        {
            name: torch.zeros(shape, dtype=dtype)
            for name, (shape, dtype) in zip(graph.states, graph.state_specs, strict=True)
        }
    )
    return session


def _run(session: int, program: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Run the graph that was compiled for exactly these shapes, on all ranks."""
    if MACHINE.tracing:
        return [torch.zeros(shape, dtype=dtype) for shape, dtype in unpack(program)[1][0].out_specs]
    if session not in SESSIONS:
        msg = "this model is not initialized, call traced_model.nxd_model.initialize(...)"
        raise ValueError(msg)
    opened = SESSIONS[session]
    shapes = tuple(tuple(tensor.shape) for tensor in inputs)
    if shapes not in opened.graphs:
        msg = f"no compiled graph for input shapes {shapes}; compiled: {list(opened.graphs)}"
        raise KeyError(msg)
    graph, module = opened.graphs[shapes]
    for place, (tensor, (_, dtype)) in enumerate(zip(inputs, graph.in_specs, strict=True)):
        if tensor.dtype != dtype:
            msg = f"input {place}: compiled for {dtype}, got {tensor.dtype}"
            raise TypeError(msg)
    COUNTERS.executions[graph.key] += 1
    arguments = [
        [*(weights[name] for name in graph.weights), *(states[name] for name in graph.states), *inputs]
        for weights, states in zip(opened.weights, opened.states, strict=True)
    ]
    with torch.no_grad():
        results = [module(*arguments[0])] if len(arguments) == 1 else lockstep(module, arguments)
    for states, result in zip(opened.states, results, strict=True):
        for name, value in zip(graph.states, result[graph.outputs :], strict=True):
            states[name] = value  # the graph writes no input in place, so this is a tensor of its own
    return [value.clone() for value in results[0][: graph.outputs]]


def lockstep(module: torch.fx.GraphModule, arguments: list[list[Any]]) -> list[Any]:
    """Run one graph for all ranks, node by node; a collective sees the values of every rank."""
    ranks = [dict[torch.fx.Node, Any]() for _ in arguments]
    places = iter(range(len(arguments[0])))
    for node in module.graph.nodes:
        if node.op == "output":
            return [torch.fx.node.map_arg(node.args[0], lambda used, values=values: values[used]) for values in ranks]
        if node.op == "placeholder":
            place = next(places)
            results = [given[place] for given in arguments]
        elif node.op == "get_attr":
            results = [getattr(module, node.target)] * len(ranks)
        elif node.target is OPS.all_gather.default:
            results = [torch.cat([values[node.args[0]] for values in ranks], node.args[1])] * len(ranks)
        elif node.target is OPS.all_reduce.default:
            results = [torch.stack([values[node.args[0]] for values in ranks]).sum(0)] * len(ranks)
        elif node.target is OPS.rand.default:
            results = [torch.rand(node.args[1])] * len(ranks)  # the same draw on every rank
        else:
            results = [_call(node, values) for values in ranks]
        for values, result in zip(ranks, results, strict=True):
            values[node] = result
    msg = "a graph without an output"
    raise AssertionError(msg)


def _call(node: torch.fx.Node, values: dict[torch.fx.Node, Any]) -> Any:
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda used: values[used])
    return node.target(*args, **kwargs)  # type: ignore[operator]


LIBRARY.impl("load_rank", _load_rank, "CompositeExplicitAutograd")
LIBRARY.impl("run", _run, "CompositeExplicitAutograd")


class NxDModel(nn.Module):
    """What `traced_model.nxd_model` is: the program, and the session once weights are loaded."""

    def __init__(self, program: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("program", program)
        self.session: int = -1

    @torch.jit.export
    def initialize(self, checkpoint: List[Dict[str, torch.Tensor]], start_rank_tensor: torch.Tensor):  # noqa: UP006
        session = -1
        for rank in range(len(checkpoint)):
            names: List[str] = []  # noqa: UP006
            tensors: List[torch.Tensor] = []  # noqa: UP006
            for name, tensor in checkpoint[rank].items():
                names.append(name)
                tensors.append(tensor)
            session = torch.ops.neuron_standin.load_rank(session, self.program, rank, len(checkpoint), names, tensors)
        self.session = session

    def forward(self, inputs: List[torch.Tensor]):  # noqa: UP006
        return torch.ops.neuron_standin.run(self.session, self.program, inputs)[0]


class Executor(nn.Module):
    """What TorchScript records: tensors in, the first result out."""

    def __init__(self, nxd_model: nn.Module) -> None:
        super().__init__()
        self.nxd_model = nxd_model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.nxd_model(list(inputs))
