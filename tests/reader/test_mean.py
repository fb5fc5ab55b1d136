"""The mean of finished models."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from tools.reader.mean import mean  # noqa: E402


def test_a_mean_lies_between_its_models_and_overwrites_nothing(tmp_path: Path) -> None:
    """Mutants seen to fail: the sum; the first model's weights."""
    for number in (1.0, 4.0):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file({"weight": torch.full((2,), number, dtype=torch.bfloat16)}, folder / "model.safetensors")
    models = [tmp_path / "1.0", tmp_path / "4.0"]
    mean(tmp_path / "out", models)
    assert load_file(tmp_path / "out" / "model.safetensors")["weight"].tolist() == [2.5, 2.5]
    with pytest.raises(FileExistsError):
        mean(tmp_path / "out", models)
