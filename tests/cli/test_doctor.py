"""`doctor`: what is here and what is missing, read without importing any of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="the command line is an extra")

from typer.testing import CliRunner

from langchain_accel.cli import inventory

STACKS = (
    "torch",
    "deepspeed",
    "optimum",
    "mindspore",
    "mindformers",
    "habana_frameworks",
    "torch_neuronx",
    "transformers",
)


def doctor(*args: str):
    from langchain_accel.cli.app import app

    return CliRunner().invoke(app, ["doctor", *args])


def write(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")


def test_every_device_is_looked_at_and_no_stack_is_imported() -> None:
    """Mutant seen to fail: a package imported to ask its version."""
    code = f"""
import sys
from langchain_accel.cli import main
sys.argv = ["langchain-accel", "doctor", "--json"]
try:
    main()
except SystemExit:
    pass
print([name for name in {STACKS!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    said, imported = done.stdout.splitlines()
    assert imported == "[]"
    devices = {report["device"]: report for report in json.loads(said)["devices"]}
    assert set(devices) == {"xeon", "gaudi", "inferentia", "ascend", "reference"}
    assert devices["reference"]["ready"]
    assert json.loads(said)["versions"]["python"]


def test_memory_and_processor_are_this_machines() -> None:
    xeon = json.loads(doctor("--device", "xeon", "--json").stdout)["devices"][0]
    total = int(Path("/proc/meminfo").read_text("utf-8").split("MemTotal:")[1].split()[0]) * 1024
    assert 0 < xeon["memory_bytes"] < total
    assert "cores for this process" in xeon["hardware"]


def test_hardware_is_read_from_the_kernels_files(tmp_path: Path) -> None:
    """Mutant seen to fail: another vendor's accelerators counted."""
    assert [inventory.hardware_of(device, tmp_path)[0] for device in ("gaudi", "inferentia", "ascend")] == ["", "", ""]
    for card, vendor in (("accel0", "0x1da3"), ("accel1", "0x1da3"), ("accel2", "0x8086")):
        write(tmp_path / "sys/class/accel" / card / "device/vendor", vendor + "\n")
    write(tmp_path / "sys/module/habanalabs/version", "1.21.2\n")
    for name in ("davinci0", "davinci1", "davinci_manager"):
        write(tmp_path / "dev" / name)
    write(tmp_path / "usr/local/Ascend/driver/version.info", "Version=24.1.rc2\nascendhal_version=7\n")
    write(tmp_path / "dev/neuron0")
    write(tmp_path / "sys/module/neuron/version", "2.19.64.0\n")
    assert inventory.hardware_of("gaudi", tmp_path) == ("2 Gaudi accelerators", None, "1.21.2")
    assert inventory.hardware_of("ascend", tmp_path) == ("2 Ascend NPUs", None, "24.1.rc2")
    assert inventory.hardware_of("inferentia", tmp_path) == ("1 Neuron device", None, "2.19.64.0")


def test_the_kernels_are_named_and_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant seen to fail: a machine without them is not ready."""
    honest = inventory.installed
    monkeypatch.setattr(inventory, "installed", lambda name: None if name == inventory.KERNELS else honest(name))
    report = inventory.report("xeon")
    assert {part.requirement: part.installed for part in report.parts}["langchain-accel-kernels (optional)"] is None
    assert not any("software" in what for what in report.missing)


def test_software_is_compared_with_what_the_extra_asks_for() -> None:
    """Mutant seen to fail: any version taken."""
    lines = [
        'numpy>=1; extra == "xeon"',
        'pydantic>=99; extra == "xeon"',
        'no-such-package-here; extra == "xeon"',
        'numpy>=1; python_version < "3.0" and extra == "xeon"',
        'rich; extra == "other"',
        "pytest",
    ]
    fine, old, absent, elsewhere = inventory.parts_of("xeon", lines)
    assert fine.fits
    assert (old.fits, old.requirement) == (False, "pydantic>=99")
    assert old.installed
    assert (absent.fits, absent.installed) == (False, None)
    assert elsewhere.elsewhere == 'python_version < "3.0"'


def test_what_is_missing_comes_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(inventory, "requires", lambda name: ['no-such-package-here; extra == "inferentia"'])
    report = inventory.report("inferentia", tmp_path)
    assert not report.ready
    assert 'software: pip install "langchain-accel[inferentia]"' in report.missing
    assert any("no inferentia hardware" in line for line in report.missing)


def test_the_exit_code_says_whether_a_device_is_ready() -> None:
    assert doctor("--device", "reference").exit_code == 0
    gone = doctor("--device", "ascend", "--json")
    assert gone.exit_code == int(not json.loads(gone.stdout)["devices"][0]["ready"])
    assert doctor("--run").exit_code == 2


def test_run_makes_twenty_tokens(tiny: Path) -> None:
    done = doctor("--device", "reference", "--run", "--model", str(tiny), "--json")
    assert done.exit_code == 0, done.stdout
    run = json.loads(done.stdout)["run"]
    assert run["results"][0]["completion_tokens"] == 20
    assert run["timing"]["tokens_per_second"] > 0


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    done = doctor("--device", "reference", "--run", "--model", str(tmp_path))
    assert done.exit_code == 1
    assert "ModelRejected" in done.stderr
    assert "has no config.json" in done.stderr.replace("\n", " ")
