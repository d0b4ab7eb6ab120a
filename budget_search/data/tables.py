"""Read columns from csv, tsv, jsonl and parquet files; content that does not match the file extension is rejected.

csv uses standard quoting. tsv uses no quoting, as in the GLUE files: a quotation mark is an ordinary character. A
missing cell is None in jsonl and parquet. csv and tsv cannot express it, so it is an empty string there.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from budget_search.core.errors import UsageError

EXTENSIONS = ("csv", "tsv", "jsonl", "parquet")


def column_names(path: Path) -> tuple[str, ...]:
    """The column names of a file, in order. Raises UsageError if the content does not match the extension."""
    if file_extension(path) == "parquet":
        return tuple(_open_parquet(path).schema_arrow.names)
    _, names = next(_records(path))
    return tuple(names)


def read_columns(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns as lists with one value per row. Raises UsageError for a missing column or a damaged file."""
    check_columns(path.name, column_names(path), names)
    if file_extension(path) == "parquet":
        try:
            table = _open_parquet(path).read(columns=list(names))
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {path.name}: {error}") from error
        return {name: table.column(name).to_pylist() for name in names}
    records = _records(path)
    next(records)
    rows = [[row.get(name) for name in names] for _, row in records]
    return {name: [row[position] for row in rows] for position, name in enumerate(names)}


def check_columns(source: str, available: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises UsageError if a wanted column is missing; ``source`` names the file or data set in the message."""
    missing = [name for name in wanted if name not in available]
    if missing:
        raise UsageError(
            f"{source} has no column {' or '.join(repr(name) for name in missing)}; "
            f"its columns are: {' '.join(repr(name) for name in available)}. Name the right ones with "
            f"--text-columns and --label-column"
        )


def file_extension(path: Path) -> str:
    """The extension of a file, without the dot. Raises UsageError if the extension is not supported."""
    suffix = path.suffix.lower().lstrip(".")
    if suffix not in EXTENSIONS:
        hint = "; a .json file with one object per line is named .jsonl" if suffix == "json" else ""
        raise UsageError(
            f"cannot read {path.name}: allowed extensions are {' '.join('.' + e for e in EXTENSIONS)}{hint}"
        )
    return suffix


def _open_parquet(path: Path) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.ParquetFile(path)
    except ArrowException as error:
        raise UsageError(f"{path.name} is named .parquet, but is not a parquet file ({error})") from error


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield a record whose keys are the columns, then all records, each with its line number (from 1)."""
    kind = file_extension(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        raise UsageError(f"{path.name} is a parquet file, not {kind}: name it .parquet")
    if not start.strip():
        raise UsageError(f"{path.name} is empty; a table with a header is needed")
    try:
        yield from _json_records(path) if kind == "jsonl" else _separated_records(path, kind)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path.name} is named .{kind}, but is not UTF-8 text ({error.reason})") from error
    except csv.Error as error:
        reason = "a quotation is not closed" if "end of data" in str(error) else error
        raise UsageError(f"{path.name} is not a {kind} file: {reason}") from error


def _separated_records(path: Path, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # the default rejects long documents
    with path.open(encoding="utf-8-sig", newline="") as file:
        if kind == "tsv":
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            rows = csv.reader(file, strict=True)
        header = next((row for row in rows if row), [])
        _check_header(path, kind, header)
        yield rows.line_num, dict.fromkeys(header)
        for row in rows:
            if row and len(row) != len(header):
                raise UsageError(
                    f"{path.name}, line {rows.line_num}: {len(row)} cells, but the header has {len(header)} columns"
                )
            if row:
                yield rows.line_num, dict(zip(header, row, strict=True))


def _check_header(path: Path, kind: str, header: Sequence[str]) -> None:
    if len(set(header)) != len(header):
        repeated = next(name for name in header if header.count(name) > 1)
        raise UsageError(f"{path.name} has two columns named {repeated!r}; column names must be unique")
    separators = {"csv": ("\t", ";"), "tsv": (",",)}[kind]
    for separator in separators:
        if len(header) == 1 and separator in header[0]:
            fix = {"\t": "tabs; name it .tsv", ";": "semicolons; use commas", ",": "commas; name it .csv"}[separator]
            raise UsageError(f"{path.name} is named .{kind}, but its columns are separated by {fix}")


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        first = True
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{path.name}, line {number}: not JSON ({error}); one object per line") from error
            if not isinstance(record, dict):
                kind = type(record).__name__
                raise UsageError(f"{path.name}, line {number}: a {kind}, not an object; one object per line is read")
            if first:
                yield number, dict.fromkeys(record)
                first = False
            yield number, record
