"""What one rank wrote to its standard output and error: a file without a name, kept short."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

LONGEST = 2**20
"""Bytes after which the older part of a log is dropped."""

_KEPT = 2**16
_WIDEST = 300


class RankLog:
    """A bounded log file in the temporary folder. It has no name there, so that nobody needs to remove it."""

    def __init__(self, opened: Path | None = None) -> None:
        """Make a log, or look into the one that another process has open under `/proc`."""
        # Both are closed by `close`.
        self._file: IO[bytes] = tempfile.TemporaryFile() if opened is None else opened.open("r+b")  # noqa: SIM115
        # Appending is a property of the open file, which the rank shares: it goes on at the end after a `trim`.
        fcntl.fcntl(self._file, fcntl.F_SETFL, fcntl.fcntl(self._file, fcntl.F_GETFL) | os.O_APPEND)

    def fileno(self) -> int:
        """Return the descriptor that the rank writes to."""
        return self._file.fileno()

    def trim(self) -> None:
        """Drop the older part of a log that has become long. What is written at this very moment may go with it."""
        if os.fstat(self.fileno()).st_size > LONGEST:
            kept = self._end(_KEPT)
            os.ftruncate(self.fileno(), 0)
            os.write(self.fileno(), kept)

    def last_lines(self, count: int = 40) -> str:
        """Return the last lines that are not empty, each indented and cut; the empty text where there are none."""
        lines = [line for line in self._end(_KEPT).decode(errors="replace").splitlines() if line.strip()]
        return "".join(f"\n    {line[:_WIDEST]}" for line in lines[-count:])

    def close(self) -> None:
        """Close the file, which removes it. Idempotent."""
        self._file.close()

    def _end(self, size: int) -> bytes:
        length = os.fstat(self.fileno()).st_size
        return os.pread(self.fileno(), size, max(0, length - size))
