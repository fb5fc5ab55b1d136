"""The machine that the stand-in pretends to be: instance type, cores, compiler version, counters."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMPILER_VERSION = "2.21.33363.0+standin"

INSTANCES = {  # name: (Neuron devices, cores that the runtime shows per device)
    "inf2.xlarge": (1, 2),
    "inf2.8xlarge": (1, 2),
    "inf2.24xlarge": (6, 2),
    "inf2.48xlarge": (12, 2),
    "trn1.2xlarge": (1, 2),
    "trn1.32xlarge": (16, 2),
    "trn2.3xlarge": (1, 4),
    "trn2.48xlarge": (16, 4),
}


@dataclass
class Counters:
    """What happened since the process began.

    Attributes:
        compiled: graphs that the compiler was asked for and that the compile cache did not hold.
        cache_hits: graphs that the compile cache held.
        executions: runs of each graph, by its key.
    """

    compiled: int = 0
    cache_hits: int = 0
    executions: Counter[str] = field(default_factory=Counter)


@dataclass
class Machine:
    """The state that the parts of the stand-in share.

    Attributes:
        instance: name of the pretended instance type; "" for a host without Neuron devices.
        group: the tensor-parallel process group while a graph is captured or weights are sharded.
        tracing: TorchScript is recording the executor, which answers with zeros meanwhile.
        anchor: a graph input that random numbers hang on: a bare factory call would become a constant.
    """

    instance: str = "inf2.8xlarge"
    group: Any = None
    tracing: bool = False
    anchor: Any = None


COUNTERS = Counters()
MACHINE = Machine()


def visible_cores() -> int:
    """Return the cores of the instance; optimum-neuron narrows them down by the environment's variables itself."""
    devices, cores = INSTANCES.get(MACHINE.instance, (0, 0))
    return devices * cores


def platform_target(*_: Any) -> str:
    """Return what the compiler compiles for, as `torch_neuronx.utils.get_platform_target` does."""
    return os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE", MACHINE.instance.split(".")[0])


def set_instance(name: str) -> None:
    """Make optimum-neuron believe it runs on an instance of this type, or, with "", on a host without Neuron devices.

    Its questions to `/proc/devices`, `/sys` and `/dev` are answered from the table above.
    """
    MACHINE.instance = name
    family = name.split(".", maxsplit=1)[0]
    os.environ.setdefault("NEURON_PLATFORM_TARGET_OVERRIDE", {"inf2": "trn1", "": "trn1"}.get(family, family))
    from optimum.neuron.utils import instance, neuron_device_memory, system

    devices, cores = INSTANCES.get(name, (0, 0))
    system.get_neuron_major = instance.get_neuron_major = lambda: 245 if name else -1
    system.get_instance_name = instance.get_instance_name = lambda: name
    system.get_neuron_devices_count = lambda: devices
    system.cores_per_device = lambda: cores
    instance.current_instance_type.cache_clear()
    neuron_device_memory.SYSFS_NEURON_BASE = Path(tempfile.gettempdir())  # it must exist; no counters are in it
