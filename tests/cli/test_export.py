"""`export` makes what there is to make (tests/inferentia/test_cli.py), and says so where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from langchain_accel.cli import exporting
from langchain_accel.devices.base import Plan
from langchain_accel.errors import ModelRejected, PlanRejected
from langchain_accel.runtime.registry import DEVICES


def run(*args: str | Path) -> Any:
    testing = pytest.importorskip("typer.testing", reason="the command line is an extra")
    from langchain_accel.cli.app import app

    return testing.CliRunner().invoke(app, ["export", *map(str, args)])


@pytest.mark.parametrize("device", sorted(set(DEVICES) - {"inferentia", "xeon"}))
def test_a_device_without_an_export_says_why(device: str, tiny: Path, tmp_path: Path) -> None:
    done = run("--model", tiny, "--device", device, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 1
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "PlanRejected"
    assert exporting.NOTHING[device] in error["message"]
    assert not (tmp_path / "out").exists()


def test_every_device_exports_or_says_why() -> None:
    assert {*exporting.NOTHING, "inferentia", "xeon"} == set(DEVICES)


def test_nothing_is_written_where_it_cannot_be_made(tiny: Path, tmp_path: Path) -> None:
    """The same refusals, whether Neuron's packages are here or not. Mutant seen to fail: the model's folder not
    looked for."""
    with pytest.raises(ModelRejected, match="is not a folder"):
        exporting.export(Plan("inferentia", str(tmp_path / "none" / "at" / "all")), tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine", "utf-8")
    with pytest.raises(PlanRejected, match="is in use"):
        exporting.export(Plan("inferentia", str(tiny)), tmp_path / "used")
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "file"]
