"""Model folders that this package writes: whole or not at all, with all that serving needs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from langchain_accel.errors import PlanRejected

_BESIDE = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")  # tokenizer, chat template, generation settings
_WEIGHTS_INDEX = "model.safetensors.index.json"


def refuse_used(folder: Path) -> None:
    """Refuse to write where something is.

    Raises:
        PlanRejected: it is neither absent nor an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} is in use; name a folder that is absent or empty"
        raise PlanRejected(msg)


def make_whole(entry: Path, make: Callable[[Path], None]) -> None:
    """Make a folder that is either absent or complete: it is filled beside its place and renamed."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", suffix=".partial", dir=entry.parent))
    try:
        make(partial)
        partial.chmod(0o755)  # mkdtemp's folders are private
        partial.rename(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_beside(source: Path, target: Path) -> None:
    """Copy config, tokenizer, chat template and generation settings of a model folder.

    What is in the target already stays.
    """
    for pattern in _BESIDE:
        for file in source.glob(pattern):
            if file.is_file() and file.name != _WEIGHTS_INDEX and not (target / file.name).exists():
                shutil.copyfile(file, target / file.name)


def upload(folder: Path, repository: str) -> None:
    """Upload a model folder to the hub, weights included; the repository is made if absent."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=folder)
