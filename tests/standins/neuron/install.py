"""Puts the stand-in where Python looks for the Neuron packages."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

from tests.standins.neuron import builder, compile_cache, layers, machine, operators, xla
from tests.standins.neuron.modules import Finder, Missing, module


class Hardware(Enum):
    """As `neuronx_distributed.utils.utils.hardware`."""

    TRN1, TRN2 = "trn1", "trn2"

    @classmethod
    def _missing_(cls, value: object) -> Any:
        return {"inf2": cls.TRN1, "trn1n": cls.TRN1}.get(str(value))


def install(instance: str = "inf2.8xlarge", compile_cache_folder: Path | None = None) -> None:
    """Make the Neuron packages importable, on a machine of an instance type. Call it once, before optimum.neuron.

    Args:
        instance: a name in `machine.INSTANCES`, or "" for a host without Neuron devices.
        compile_cache_folder: where the compile cache is; the environment's, if left out.
    """
    if compile_cache_folder is not None:
        os.environ["NEURON_COMPILE_CACHE_URL"] = str(compile_cache_folder)
    os.environ["USE_TORCH_XLA"] = "0"  # transformers and accelerate must not take our torch_xla for the real one
    with suppress(ImportError):
        import accelerate  # noqa: F401
    sys.meta_path.insert(0, Finder())
    module("torch_neuronx", __version__="2.8.0.2.10", DataParallel=Missing)
    module("torch_neuronx.utils", get_platform_target=machine.platform_target)
    module("torch_neuronx.xla_impl.ops", xla_hlo_call=xla.xla_hlo_call, nki_jit=xla.nki_jit, RmsNorm=xla.RmsNorm)
    module("torch_neuronx.xla_impl.base", xla_hlo_call=xla.xla_hlo_call)
    module("torch_xla", __version__="2.8.0")
    module("torch_xla.core.xla_model")
    module("torch_xla.runtime")
    module("neuronxcc", __version__=machine.COMPILER_VERSION)
    module("neuronxcc.nki._private_kernels.cumsum", cumsum=xla.cumsum)
    module("neuronxcc.nki._private_kernels.attention", attention_isa_kernel=xla.attention)
    module("neuronxcc.nki.language", nc=int)
    module("neuronxcc.nki", jit=lambda *_, **__: lambda function: function)
    names = ("CacheUrl", "CompileCache", "CompileCacheFs", "CompileCacheS3", "create_compile_cache")
    module("libneuronxla.neuron_cc_cache", **{name: getattr(compile_cache, name) for name in names})
    _distributed("neuronx_distributed.")
    machine.set_instance(instance)


def _distributed(package: str) -> None:
    module(
        f"{package}parallel_layers.layers",
        ColumnParallelLinear=layers.ColumnParallelLinear,
        RowParallelLinear=layers.RowParallelLinear,
        ParallelEmbedding=layers.ParallelEmbedding,
        SPMDRank=layers.SPMDRank,
    )
    module(
        f"{package}parallel_layers.mappings",
        _gather_along_dim=lambda x, partition_dim, process_group=None, **_: operators.gather(
            x, partition_dim, process_group
        ),
    )
    module(
        f"{package}parallel_layers.parallel_state",
        get_tensor_model_parallel_group=lambda **_: machine.MACHINE.group,
        model_parallel_is_initialized=lambda: machine.MACHINE.group is not None,
        get_kv_shared_group=Missing,
    )
    module(f"{package}parallel_layers.utils", divide=layers.divide, get_padding_length=layers.padding)
    module(f"{package}parallel_layers.pad", get_number_of_extra_heads=layers.padding)
    module(f"{package}operators.argmax", argmax=operators.argmax)
    module(f"{package}operators.topk", topk=operators.topk)
    module(f"{package}utils.utils", hardware=Hardware)
    module(
        f"{package}trace.model_builder",
        ModelBuilder=builder.ModelBuilder,
        BaseModelInstance=builder.BaseModelInstance,
    )
    module(f"{package}trace.hlo_utils", NXD_LAYOUT_TRANSFORMATION_OPTIONS="NXD_LAYOUT_TRANSFORMATION_OPTIONS")
