"""`ModelBuilder`: captures graphs at fixed shapes, asks the compiler for them, splits weights between ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.standins.neuron import graphs
from tests.standins.neuron.compile_cache import CacheUrl, current_cache
from tests.standins.neuron.device import Executor, NxDModel
from tests.standins.neuron.layers import Parallel
from tests.standins.neuron.machine import COUNTERS, MACHINE


class BaseModelInstance:
    """A module and which of its parameters are aliased to outputs."""

    def __init__(self, module_cls: Callable[[], nn.Module], input_output_aliases: dict[Any, int]) -> None:
        self.module_cls, self.module, self.input_output_aliases = module_cls, None, [input_output_aliases]

    def load_module(self) -> None:
        self.module = self.module_cls()

    def get(self, bucket_rank: int, **_: Any) -> tuple[Any, dict[Any, int]]:
        return self.module, self.input_output_aliases[0]


class ModelBuilder:
    """As `neuronx_distributed.trace.model_builder.ModelBuilder`, for tensor parallelism in one process."""

    def __init__(
        self,
        router: Any = None,
        tp_degree: int = 1,
        checkpoint_loader: Callable[[], dict[str, torch.Tensor]] | None = None,
        pp_degree: int = 1,
        ep_degree: int = 1,
        **_: Any,
    ) -> None:
        assert pp_degree == ep_degree == 1, "the stand-in has tensor parallelism only"
        self.ranks, self.checkpoint_loader = tp_degree, checkpoint_loader
        self.models: dict[str, tuple[Any, list[Any], str]] = {}

    def add(
        self, key: str, model_instance: Any, example_inputs: list[Any], compiler_args: str | None = None, **_: Any
    ) -> ModelBuilder:
        self.models[key] = (model_instance, example_inputs, compiler_args or "")
        return self

    def trace(self, initialize_model_weights: bool = True, dry_run: bool = False) -> torch.jit.ScriptModule:  # noqa: FBT002
        """Capture and compile every graph; return the executor as TorchScript, without weights."""
        assert not initialize_model_weights, "the stand-in loads weights with initialize() only"
        captured = []
        with fake_ranks(self.ranks):
            for key, (instance, examples, args) in self.models.items():
                for example in examples:
                    captured.append(_capture(key, instance, example))
                    _compile(captured[-1], args)
        model = torch.jit.script(NxDModel(graphs.pack(self.ranks, captured)))
        MACHINE.tracing = True
        try:
            first = next(iter(self.models.values()))[1][0]
            return torch.jit.trace(Executor(model), tuple(first), strict=False, check_trace=False)
        finally:
            MACHINE.tracing = False

    def shard_checkpoint(self, serialize_path: str | None = None) -> list[dict[str, torch.Tensor]]:
        """Return one checkpoint per rank, and write them as safetensors where a path is given."""
        assert self.checkpoint_loader is not None
        with fake_ranks(self.ranks):
            instance = next(iter(self.models.values()))[0]
            instance.load_module()
            module, aliases = instance.get(0)
            whole = self.checkpoint_loader()
            _preshard(module, whole, "")
            states = {id(parameter) for parameter in aliases}
            known = {name for name, parameter in module.named_parameters() if id(parameter) not in states}
            if absent := sorted(known - set(whole)):
                msg = f"weights missing from the checkpoint: {absent[:4]}"
                raise KeyError(msg)
            shards = [_shard(module, known, whole, rank, self.ranks) for rank in range(self.ranks)]
        if serialize_path:
            from safetensors.torch import save_file

            Path(serialize_path).mkdir(parents=True, exist_ok=True)
            for rank, shard in enumerate(shards):
                save_file(shard, Path(serialize_path) / f"tp{rank}_sharded_checkpoint.safetensors")
        return shards


@contextmanager
def fake_ranks(ranks: int) -> Iterator[None]:
    """Let modules be built as rank 0 of so many."""
    assert not dist.is_initialized(), "ModelBuilder wants torch.distributed uninitialised"
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    MACHINE.group = dist.group.WORLD
    try:
        yield
    finally:
        MACHINE.group = None
        dist.destroy_process_group()


def _capture(key: str, instance: Any, example: Any) -> graphs.Graph:
    """Capture one graph: control flow and shapes become facts; parameters become inputs."""
    instance.load_module()
    module, aliases = instance.get(0)
    parameters = dict(module.named_parameters())
    order = {id(parameter): place for parameter, place in aliases.items()}
    states = sorted(
        (name for name, parameter in parameters.items() if id(parameter) in order),
        key=lambda name: order[id(parameters[name])],
    )
    weights = [name for name in parameters if name not in set(states)]

    def call(weight_values: Any, state_values: Any, inputs: Any) -> list[Any]:
        MACHINE.anchor = inputs[-1]
        values = {**dict(zip(weights, weight_values, strict=True)), **dict(zip(states, state_values, strict=True))}
        out = torch.func.functional_call(module, values, tuple(inputs))
        return list(out) if isinstance(out, (list, tuple)) else [out]

    arguments = ([parameters[name] for name in weights], [parameters[name] for name in states], list(example))
    with torch.no_grad():
        captured = make_fx(call, tracing_mode="real", _error_on_data_dependent_ops=False)(*arguments)
        results = captured(*arguments)
    outputs = len(results) - len(states)

    def specs(tensors: Any) -> graphs.Specs:
        return [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]

    return graphs.Graph(
        key=key,
        nodes=graphs.dump(captured.graph),
        constants={str(n.target): getattr(captured, str(n.target)) for n in captured.graph.nodes if n.op == "get_attr"},
        code=captured.code,
        weights=weights,
        states=states,
        outputs=outputs,
        weight_specs=specs(arguments[0]),
        state_specs=specs(arguments[1]),
        in_specs=specs(example),
        out_specs=specs(results[:outputs]),
    )


def _compile(graph: graphs.Graph, compiler_args: str) -> None:
    """Look the graph up in the compile cache; what is not there counts as compiled and is put there."""
    cache = current_cache(CacheUrl.get_cache_url())
    content = f"{graph.code}{graph.in_specs}{graph.state_specs}{compiler_args}"
    done = cache.get_cache_dir(hashlib.sha256(content.encode()).hexdigest()[:20], "0") + "/model.done"
    if cache.exists(done):
        COUNTERS.cache_hits += 1
    else:
        COUNTERS.compiled += 1
        cache.upload_string_to_file(done, "")


def _preshard(module: nn.Module, whole: dict[str, torch.Tensor], prefix: str) -> None:
    """Run the modules' own preparations of a whole checkpoint: padding, fusing, copying heads."""
    if getattr(module, "preshard_hook", None) is not None:
        module.preshard_hook(whole, f"{prefix}weight")
        if getattr(module, "add_bias", False):
            module.preshard_hook(whole, f"{prefix}bias")
        return
    for name, child in module.named_children():
        _preshard(child, whole, f"{prefix}{name}.")


def _shard(
    module: nn.Module, known: set[str], whole: dict[str, torch.Tensor], rank: int, ranks: int
) -> dict[str, torch.Tensor]:
    """Return one rank's weights; each must have the shape that was compiled."""
    shard = {}
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if full not in known:
                continue
            weight = whole[full].to(parameter.dtype)
            weight = part.shard(name, weight, rank, ranks) if isinstance(part, Parallel) else weight
            if weight.shape != parameter.shape:
                msg = f"{full}: a shard of {tuple(weight.shape)} where {tuple(parameter.shape)} was compiled"
                raise ValueError(msg)
            shard[full] = weight.contiguous().clone()
    return shard
