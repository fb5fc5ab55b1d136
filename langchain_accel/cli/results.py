"""Results of a long run in a jsonl file that survives being killed at any moment.

Beside `results.jsonl` lies `results.jsonl.run.json`, which says what the run was asked; it is there, whole, before the
first result is. Results are appended in the order of the input, each line with one write. So a file's whole lines are
always the first answers of the run that its neighbour describes, and at most its last line is torn.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from langchain_accel.errors import InvalidRequest


class Results:
    """The results of one run, open for appending. Nobody else can open them meanwhile.

    Attributes:
        done: results that are in the file.
    """

    def __init__(self, file: Path, asked: Mapping[str, Any]) -> None:
        """Open new results, or those of the same run that was interrupted.

        Args:
            file: where results go; `.run.json` is appended to its name for the description of the run.
            asked: everything that decides what the results are, as JSON takes it.

        Raises:
            InvalidRequest: another process writes to it, it belongs to a run that was asked something else, or it holds
                something else than results.
        """
        self._file = file
        try:
            self._out = FileIO(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666), "r+")
        except OSError as error:
            msg = f"{file} cannot be written: {error}"
            raise InvalidRequest(msg) from error
        try:
            self._lock()
            self._claim(json.loads(json.dumps(asked)))
            self.done = self._recover()
        except BaseException:
            self._out.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one result, whose `index` must be the next."""
        assert record["index"] == self.done, "results are written in the order of the input"
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        view = memoryview(line)
        while view:  # a full disk may take a part of it
            view = view[self._out.write(view) :]
        self.done += 1

    def __enter__(self) -> Self:
        """Return these results."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Bring the file to the disk and close it."""
        os.fsync(self._out.fileno())
        self._out.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._out.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
        except OSError as error:
            msg = f"another process writes to {self._file}: wait for it, or choose another --out"
            raise InvalidRequest(msg) from error

    def _claim(self, asked: dict[str, Any]) -> None:
        """Check that the results there are belong to this run; describe it if there are none yet."""
        describing = self._file.with_name(self._file.name + ".run.json")
        if os.fstat(self._out.fileno()).st_size == 0:
            partial = describing.with_name(describing.name + ".part")
            with partial.open("w", encoding="utf-8") as file:
                file.write(json.dumps(asked, indent=2, ensure_ascii=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(describing)
            return
        try:
            before = json.loads(describing.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            msg = (
                f"{self._file} is not empty, and {describing.name}, which would say what its results are of, cannot be "
                f"read ({error}): choose another --out"
            )
            raise InvalidRequest(msg) from error
        if differing := differences(before, asked):
            msg = (
                f"{self._file} holds results of another run: {'; '.join(differing)}. Choose another --out, or ask for "
                "the same as before"
            )
            raise InvalidRequest(msg)

    def _recover(self) -> int:
        """Drop a torn last line and return the number of whole ones."""
        done = whole = 0
        self._out.seek(0)
        with open(self._out.fileno(), "rb", closefd=False) as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                if _index(line) != done:
                    msg = f"line {done + 1} of {self._file} is not the result of prompt {done}: choose another --out"
                    raise InvalidRequest(msg)
                done, whole = done + 1, whole + len(line)
        os.ftruncate(self._out.fileno(), whole)
        return done


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return, for each name that two descriptions disagree on, what it was and what it is."""
    names = [*before, *(name for name in now if name not in before)]
    said = [(name, before.get(name), now.get(name)) for name in names]
    return [f"{name} was {old!r} and is {new!r}" for name, old, new in said if old != new]


def _index(line: bytes) -> int | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record.get("index") if isinstance(record, dict) else None
