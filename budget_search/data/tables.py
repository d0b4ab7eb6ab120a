"""Columns out of csv, tsv, jsonl and parquet files; a file that is not what its ending says is refused.

csv is quoted as usual. tsv is not quoted at all, as in the GLUE files: a quotation mark is a character like any other.
Missing cells come back as None in jsonl and parquet, and as an empty text in csv and tsv, which cannot tell them apart.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from budget_search.core.errors import UsageError

ENDINGS = ("csv", "tsv", "jsonl", "parquet")


def column_names(path: Path) -> tuple[str, ...]:
    """The names of a file's columns, in order. Raises UsageError when the file is not what its ending says."""
    if ending(path) == "parquet":
        return tuple(_open_parquet(path).schema_arrow.names)
    _, names = next(_records(path))
    return tuple(names)


def read_columns(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """These columns as lists, one value per row. Raises UsageError for a missing column or a broken file."""
    there = column_names(path)
    check_columns(path.name, there, names)
    if ending(path) == "parquet":
        try:
            table = _open_parquet(path).read(columns=list(names))
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {path.name}: {error}") from error
        return {name: table.column(name).to_pylist() for name in names}
    records = _records(path)
    next(records)
    rows = [[row.get(name) for name in names] for _, row in records]
    return {name: [row[position] for row in rows] for position, name in enumerate(names)}


def check_columns(place: str, there: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises UsageError when a wanted column is not there; ``place`` says where they were looked for."""
    missing = [name for name in wanted if name not in there]
    if missing:
        raise UsageError(
            f"{place} has no column {' or '.join(repr(name) for name in missing)}; "
            f"its columns are: {' '.join(repr(name) for name in there)}. Name the right ones with --text-columns and "
            f"--label-column"
        )


def ending(path: Path) -> str:
    """What kind of file this is, by its name. Raises UsageError for a kind that is not read."""
    suffix = path.suffix.lower().lstrip(".")
    if suffix not in ENDINGS:
        hint = "; a .json file with one object per line is named .jsonl" if suffix == "json" else ""
        raise UsageError(f"cannot read {path.name}: allowed endings are {' '.join('.' + e for e in ENDINGS)}{hint}")
    return suffix


def _open_parquet(path: Path) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.ParquetFile(path)
    except ArrowException as error:
        raise UsageError(f"{path.name} is named .parquet, but is not a parquet file ({error})") from error


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """First the columns as the keys of a record, then every record, each with its line number (from 1)."""
    kind = ending(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        raise UsageError(f"{path.name} is a parquet file, not {kind}: name it .parquet")
    if not start.strip():
        raise UsageError(f"{path.name} is empty; a table with column names is needed")
    try:
        yield from _json_records(path) if kind == "jsonl" else _separated_records(path, kind)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path.name} is named .{kind}, but is not UTF-8 text ({error.reason})") from error
    except csv.Error as error:
        reason = "a quotation is not closed" if "end of data" in str(error) else error
        raise UsageError(f"{path.name} is not a {kind} file: {reason}") from error


def _separated_records(path: Path, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # the default refuses long documents
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
                    f"{path.name}, line {rows.line_num}: {len(row)} cells where the header names {len(header)} columns"
                )
            if row:
                yield rows.line_num, dict(zip(header, row, strict=True))


def _check_header(path: Path, kind: str, header: Sequence[str]) -> None:
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UsageError(f"{path.name} has two columns named {twice!r}; every column needs a name of its own")
    separators = {"csv": ("\t", ";"), "tsv": (",",)}[kind]
    for separator in separators:
        if len(header) == 1 and separator in header[0]:
            said = {"\t": "tabs; name it .tsv", ";": "semicolons; use commas", ",": "commas; name it .csv"}[separator]
            raise UsageError(f"{path.name} is named .{kind}, but its columns are separated by {said}")


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
