"""The virtual environment of a peer: their pins exclude each other, and ours.

    python -m benchmarks.xeon.setup hf llama_cpp openvino vllm --into FOLDER

llama.cpp is compiled for this machine's processor, which takes a C++ compiler, cmake, and up to half an hour.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.xeon.roster import READY, REQUIREMENTS, UNWANTED, environment_folder

# No image models. https://github.com/ggml-org/llama.cpp/blob/master/docs/build.md
COMPILING = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"}


def install(environment: str, environments: Path) -> Path:
    """Make a virtual environment; one that is whole is left as it is, one that is not is made again.

    Args:
        environment: key of `REQUIREMENTS`.
        environments: folder of all of them.

    Raises:
        CalledProcessError: pip failed; it has said why.
    """
    folder = environment_folder(environment, environments)
    if not (folder / READY).exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)  # noqa: S603
        pip = [folder / "bin" / "python", "-m", "pip"]
        subprocess.run([*pip, "install", *REQUIREMENTS[environment]], env=os.environ | COMPILING, check=True)  # noqa: S603
        if unwanted := UNWANTED.get(environment):
            subprocess.run([*pip, "uninstall", "--yes", *unwanted], check=True)  # noqa: S603
        (folder / READY).touch()
    return folder


def main() -> None:
    """Make what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="+", choices=REQUIREMENTS)
    parser.add_argument("--into", type=Path, required=True, help="folder of all of them")
    args = parser.parse_args()
    for environment in args.peers:
        print(install(environment, args.into.resolve()))


if __name__ == "__main__":
    main()
