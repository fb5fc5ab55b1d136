"""The Neuron packages and devices that are really there."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from langchain_accel.devices.inferentia.plan import INSTANCES, Instance
from langchain_accel.errors import DeviceUnavailable, PlanRejected

INSTALL = (
    'in a virtual environment of its own on Python 3.10 or 3.11, pip install "langchain-accel[inferentia]" '
    '"optimum-neuron[neuronx]", with AWS\'s Neuron package index as --extra-index-url (see docs/inferentia.md)'
)
# Imported one by one: the names of the last three also exist on PyPI, with nothing behind them.
_PARTS = {
    "optimum.neuron": "optimum-neuron",
    "torch_neuronx": "torch-neuronx",
    "neuronxcc": "neuronx-cc",
    "neuronx_distributed": "neuronx-distributed",
}
_TARGET = "NEURON_PLATFORM_TARGET_OVERRIDE"


def require(target: str | None = None) -> None:
    """Import the Neuron packages.

    Asking for a package's version is not enough: PyPI holds packages of these names that refuse to be imported, or
    that have nothing to import, and their versions are found all the same.

    Args:
        target: the family to compile for, where it is not that of this machine.

    Raises:
        DeviceUnavailable: one is missing, or is PyPI's placeholder.
        PlanRejected: this process compiles for another family already.
    """
    if target is not None and "torch_neuronx" not in sys.modules and not _device():
        os.environ.setdefault(_TARGET, target)  # read by the packages while they are imported
    for module, package in _PARTS.items():
        _require_one(module, package)
    compiling_for = os.environ.get(_TARGET)
    if target is not None and compiling_for not in (None, target):
        msg = f"this process compiles for {compiling_for}, not {target}; set {_TARGET}={target} and start it anew"
        raise PlanRejected(msg)


def _require_one(module: str, package: str) -> None:
    try:
        import_module(module)
    except ImportError as error:
        installed = _version(package)
        what = f"{module} cannot be imported ({error})"
        if installed and package != "optimum-neuron":
            what = (
                f"{package} {installed} is installed and cannot be imported ({error}): on PyPI this name is a "
                "placeholder, the real package comes from AWS's own index"
            )
        msg = f"the inferentia device needs optimum-neuron and AWS's Neuron packages: {what}. To install: {INSTALL}"
        raise DeviceUnavailable(msg) from error


def compiler() -> str:
    """Return the version of the compiler, which an exported model is bound to."""
    from optimum.neuron.utils.version_utils import get_neuronxcc_version

    return str(get_neuronxcc_version())


def library() -> str:
    """Return the version of optimum-neuron, which an exported model is bound to."""
    from optimum.neuron.version import __version__

    return str(__version__)


def here() -> Instance | None:
    """Return what this process can use of the instance it runs on; None on a machine without Neuron devices."""
    if not _device():
        return None
    from optimum.neuron.utils.instance import current_instance_type
    from optimum.neuron.utils.system import get_available_cores, get_instance_name

    name, target = str(get_instance_name()).strip(), str(current_instance_type())
    family = next(instance for instance in INSTANCES.values() if instance.target == target)
    return replace(INSTANCES.get(name, family), cores=int(get_available_cores()))


def planned(name: str | None, *, serve: bool) -> Instance:
    """Return the instance to plan for: the named one, else this one.

    Args:
        name: an instance type, or None.
        serve: the model is to run here, not only to be compiled.

    Raises:
        DeviceUnavailable: the model is to run here, and there is no Neuron device.
        PlanRejected: no such instance type is known, or it is of another family than this one.
    """
    if name is not None and name not in INSTANCES:
        msg = f"instance={name!r} is not known; the instance types are {', '.join(INSTANCES)}"
        raise PlanRejected(msg)
    present = here()
    if serve and present is None:
        msg = (
            "no Neuron device is on this machine (there is no neuron in /proc/devices): run on an inf2, trn1 or trn2 "
            "instance with the aws-neuronx-dkms driver. A model can be exported without one: "
            "python -m langchain_accel.devices.inferentia.export --help"
        )
        raise DeviceUnavailable(msg)
    if serve and present is not None:
        if name is not None and INSTANCES[name].target != present.target:
            msg = f"instance={name!r} has {INSTANCES[name].target} cores, this machine {present.target}; leave it out"
            raise PlanRejected(msg)
        return present
    if name is not None:
        return INSTANCES[name]
    if present is None:
        msg = f"there is no Neuron device here to plan for; set instance to one of {', '.join(INSTANCES)}"
        raise PlanRejected(msg)
    return present


def _device() -> bool:
    try:
        from optimum.neuron.utils import system
    except ImportError:
        return False
    return bool(system.get_neuron_major() != -1)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
