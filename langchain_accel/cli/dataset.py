"""Prompts in one column of a jsonl, csv or parquet file, or of a dataset of the hub, read a record at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langchain_accel.errors import DeviceUnavailable, InvalidRequest

SUFFIXES = (".jsonl", ".csv", ".parquet")


def column(source: str | Path, name: str, split: str = "train") -> Iterator[str]:
    """Yield one column's texts, from top to bottom. Only a part of them is in memory at a time.

    Args:
        source: a file; or a hub id or folder, which the package `datasets` reads as a stream.
        name: the column.
        split: of what `datasets` reads.

    Raises:
        InvalidRequest: the source cannot be read, is of an unknown kind, or a record has no text in that column.
        DeviceUnavailable: reading it needs a package that is not installed.
    """
    file = Path(source)
    try:
        for place, record in enumerate(_records(file, name) if _is_file(file) else _dataset(str(source), split)):
            yield _text(source, place, record, name)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{source} cannot be read: {type(error).__name__}: {error}"
        raise InvalidRequest(msg) from error


def _is_file(path: Path) -> bool:
    """Whether a source is a file, or was meant to be one."""
    return path.suffix.lower() in SUFFIXES or (path.exists() and not path.is_dir())


def _records(file: Path, name: str) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        msg = f"{file} is not a file: a dataset is read twice, so it cannot be a pipe"
        raise InvalidRequest(msg)
    kinds = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if file.suffix.lower() not in kinds:
        msg = f"{file} ends with none of {', '.join(SUFFIXES)}: convert it, or rename it to what it holds"
        raise InvalidRequest(msg)
    return kinds[file.suffix.lower()](file, name)


def _dataset(identity: str, split: str) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        msg = (
            f"{identity} is no file, and reading it from the hub needs the package datasets ({error}): "
            "pip install datasets, or give a jsonl, csv or parquet file"
        )
        raise DeviceUnavailable(msg) from error
    try:
        records = load_dataset(identity, split=split, streaming=True)
    except Exception as error:
        msg = (
            f"{identity} is no file and no dataset with a split {split!r} that could be read ({type(error).__name__}: "
            f"{error}): check the spelling and --split"
        )
        raise InvalidRequest(msg) from error
    yield from records


def _text(source: str | Path, place: int, record: dict[str, Any], name: str) -> str:
    if name not in record:
        msg = f"record {place} of {source} has no column {name!r}, it has {', '.join(map(str, record))}: set --column"
        raise InvalidRequest(msg)
    value = record[name]
    if not isinstance(value, str):
        msg = f"column {name!r} of record {place} of {source} holds {type(value).__name__}, not text: correct it"
        raise InvalidRequest(msg)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        msg = f"column {name!r} of record {place} of {source} is not Unicode text ({error}): correct it"
        raise InvalidRequest(msg) from error
    return value


def _jsonl(file: Path, name: str) -> Iterator[dict[str, Any]]:
    del name
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                msg = f"line {number} of {file} is not JSON ({error}): correct the file"
                raise InvalidRequest(msg) from error
            if not isinstance(record, dict):
                msg = f"line {number} of {file} holds {type(record).__name__}, not an object: correct the file"
                raise InvalidRequest(msg)
            yield record


def _csv(file: Path, name: str) -> Iterator[dict[str, Any]]:
    del name
    with file.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines)


def _parquet(file: Path, name: str) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        msg = f"reading {file} needs pyarrow ({error}): pip install pyarrow, or convert the file to jsonl or csv"
        raise DeviceUnavailable(msg) from error
    try:
        with parquet.ParquetFile(file) as table:
            columns = [name] if name in table.schema_arrow.names else None
            for batch in table.iter_batches(batch_size=256, columns=columns):
                yield from batch.to_pylist()
    except ArrowInvalid as error:
        msg = f"{file} is not a parquet file ({error})"
        raise InvalidRequest(msg) from error
