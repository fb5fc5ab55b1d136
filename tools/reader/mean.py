"""Write the even mean of finished models that went on from each other, in bfloat16.

python tools/reader/mean.py OUT MODEL MODEL...
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file


def mean(out: Path, folders: list[Path]) -> None:
    """Write the mean; tokenizer and config are the first one's.

    Raises:
        FileExistsError: there is something at `out`.
    """
    shutil.copytree(folders[0], out)
    models = [load_file(folder / "model.safetensors") for folder in folders]
    weights = {name: sum(model[name].float() / len(models) for model in models).bfloat16() for name in models[0]}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Write what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    args = parser.parse_args()
    mean(args.out, args.models)


if __name__ == "__main__":
    main()
