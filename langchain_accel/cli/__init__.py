"""The command line, `langchain-accel`: the package's work at a shell. Needs the extra `cli`."""

from __future__ import annotations

import sys

INSTALL = 'pip install "langchain-accel[cli]"'


def main() -> None:
    """Run the command line with the arguments of this process; exits with 0, 1, 2 or 130 (docs/cli.md)."""
    try:
        import rich
        import typer
    except ImportError as error:
        sys.stderr.write(f"langchain-accel's command line needs typer and rich ({error}): {INSTALL}\n")
        raise SystemExit(1) from error
    del rich, typer
    from langchain_accel.cli.app import app

    app()
