"""Which accelerators and which of their software are here, without importing any of it.

Importing a vendor's stack may take seconds, claim the device or end the process. So hardware is read from the kernel's
files, and software from the metadata of installed packages: what is found installed may still fail to import.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from langchain_accel.errors import DeviceUnavailable
from langchain_accel.runtime.registry import DEVICES, find

PACKAGE = "langchain-accel"
KERNELS = "langchain-accel-kernels"


@dataclass(frozen=True, slots=True)
class Part:
    """One package that a device needs.

    Attributes:
        requirement: the package and the versions that will do.
        installed: the version that is here; None where it is not.
        fits: whether that version will do.
        elsewhere: the condition on Python or the system that is not met here; empty where it is met.
    """

    requirement: str
    installed: str | None
    fits: bool
    elsewhere: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What there is of one device.

    Attributes:
        device: its name.
        released: whether this release of the package has it.
        hardware: what was found of it, in words; empty where there is none.
        memory_bytes: memory that a model can have there; None where the kernel does not say.
        driver: version of its kernel driver; None where there is none.
        parts: packages of its extra.
        missing: what keeps it from running a model, each with what to do about it.
    """

    device: str
    released: bool
    hardware: str
    memory_bytes: int | None
    driver: str | None
    parts: Sequence[Part] = field(default_factory=tuple)
    missing: Sequence[str] = field(default_factory=tuple)

    @property
    def ready(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing


def look(root: Path = Path("/")) -> list[Report]:
    """Return what there is of every device, on the machine whose file system begins at `root`."""
    return [report(device, root) for device in DEVICES]


def report(device: str, root: Path = Path("/")) -> Report:
    """Return what there is of one device."""
    hardware, memory, driver = hardware_of(device, root)
    try:
        released = bool(find(device))
    except DeviceUnavailable:
        released = False
    parts = parts_of(device)
    if device == "xeon":  # which works without, slower
        parts.append(Part(f"{KERNELS} (optional)", installed(KERNELS), fits=True))
    missing = [] if released else [f"this release of {PACKAGE} has no {device} device yet"]
    if not hardware:
        missing.append(f"no {device} hardware is on this machine, or its driver is not loaded")
    if away := [part for part in parts if part.elsewhere]:
        missing += [f"{part.requirement} needs {part.elsewhere}: make a virtual environment with that" for part in away]
    if [part for part in parts if not part.fits and not part.elsewhere]:
        missing.append(f'software: pip install "{PACKAGE}[{device}]"')
    return Report(device, released, hardware, memory, driver, tuple(parts), tuple(missing))


def parts_of(extra: str, lines: Sequence[str] | None = None) -> list[Part]:
    """Return the packages of an extra of this package and what is installed of each.

    Args:
        extra: its name.
        lines: requirements as packaging writes them. (Default: those of the installed package)
    """
    parts = []
    for line in (requires(PACKAGE) or ()) if lines is None else lines:
        wanted = Requirement(line)
        if wanted.marker is None or f"extra == '{extra}'" not in str(wanted.marker).replace('"', "'"):
            continue
        met = wanted.marker.evaluate({"extra": extra})
        elsewhere = "" if met else re.sub(r"""\s*and extra == ["']\S+["']""", "", str(wanted.marker)).strip("() ")
        here = installed(wanted.name)
        fits = here is not None and wanted.specifier.contains(here, prereleases=True)
        parts.append(Part(f"{wanted.name}{wanted.specifier}", here, fits, elsewhere))
    return parts


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def hardware_of(device: str, root: Path) -> tuple[str, int | None, str | None]:
    """Return a device's hardware in words, its memory in bytes and its driver's version, as the kernel tells."""
    if device == "gaudi":
        # habanalabs is the kernel's driver; its accelerators are PCI vendor 1da3 (include/linux/pci_ids.h).
        cards = [file for file in root.glob("sys/class/accel/accel*/device/vendor") if _text(file) == "0x1da3"]
        count = len(cards) or len(list(root.glob("dev/hl[0-9]")))
        return _cards(count, "Gaudi accelerator"), None, _text(root / "sys/module/habanalabs/version")
    if device == "inferentia":
        count = len(list(root.glob("dev/neuron[0-9]*")))
        return _cards(count, "Neuron device"), None, _text(root / "sys/module/neuron/version")
    if device == "ascend":
        count = len([file for file in root.glob("dev/davinci[0-9]*") if file.name[7:].isdigit()])
        info = _text(root / "usr/local/Ascend/driver/version.info") or ""
        found = re.search(r"^Version=(\S+)", info, re.MULTILINE)
        return _cards(count, "Ascend NPU"), None, found[1] if found else None
    return _processors(root), _memory(root), None


def _processors(root: Path) -> str:
    text = _text(root / "proc/cpuinfo") or ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    fast = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    has = [flag for flag in fast if flags and flag in flags[1].split()]
    words = [
        name[1].strip() if name else "CPU",
        f"{len(os.sched_getaffinity(0))} cores for this process",
        " ".join(has),
    ]
    return ", ".join(word for word in words if word)


def _memory(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _cards(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}" if count else ""


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
