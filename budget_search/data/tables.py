"""Read columns from csv, tsv, jsonl, parquet and CoNLL files, compressed or not; other content is rejected.

csv uses standard quoting, and commas, semicolons, tabs or vertical bars: the separator is recognised (see
``_separator``). tsv uses no quoting, as in the GLUE files: a quotation mark is an ordinary character. Text is UTF-8,
or UTF-16 with a byte order mark, unless an encoding is named. A missing cell is None in jsonl and parquet. csv and tsv
cannot express it, so it is an empty string there.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any

from budget_search.core.errors import UsageError
from budget_search.data import conll

_TABLES = ("csv", "tsv", "jsonl", "parquet")
EXTENSIONS = (*_TABLES, *conll.EXTENSIONS)
COMPRESSIONS: dict[str, Callable[[Path], IO[bytes]]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}  # type: ignore[dict-item]
SEPARATED = ("csv", "tsv")
"""Kinds of files whose cells are texts."""
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
ROWS_TO_RECOGNISE = 200
"""Rows of a csv file that are parsed with each separator to tell which one it uses."""
_SPREADSHEETS = ("xlsx", "xls", "ods", "numbers")
_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def check_columns(source: str, available: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises UsageError if a wanted column is missing; ``source`` names the file or data set in the message."""
    missing = [name for name in wanted if name not in available]
    if missing:
        raise UsageError(
            f"{source} has no column {' or '.join(repr(name) for name in missing)}; "
            f"its columns are: {' '.join(repr(name) for name in available)}. Name the right ones with "
            f"--text-columns and --label-column"
        )


def table_stem(path: Path) -> str | None:
    """The name without its extension and that of a compression after it; None for another kind of file."""
    extension, compression = _extensions(path)
    if extension not in EXTENSIONS:
        return None
    return path.name[: -len(f".{extension}.{compression}" if compression else f".{extension}")]


def _extensions(path: Path) -> tuple[str, str]:
    """The extension, and that of the compression after it (empty for none); both without the dot, in lower case."""
    suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in COMPRESSIONS:
        return suffixes[-2], suffixes[-1]
    return (suffixes[-1] if suffixes else ""), ""


@dataclass(frozen=True)
class Table:
    """One file. ``encoding`` is the one that the user named; None recognises UTF-8 and UTF-16.

    Raises UsageError if the extension is not supported.
    """

    path: Path
    encoding: str | None = None

    def __post_init__(self) -> None:
        suffix, _ = _extensions(self.path)
        if suffix in EXTENSIONS:
            return
        hint = ""
        if suffix == "json":
            hint = "; a .json file with one object per line is named .jsonl"
        elif suffix in _SPREADSHEETS:
            hint = "; export the sheet as csv (UTF-8) and give that file"
        raise UsageError(
            f"cannot read {self.path.name}: allowed extensions are {' '.join('.' + e for e in EXTENSIONS)}, "
            f"also compressed ({' '.join('.' + e for e in COMPRESSIONS)}){hint}"
        )

    @property
    def kind(self) -> str:
        return _extensions(self.path)[0]

    @property
    def title(self) -> str:
        """The name of the file, and how it is read if that is not obvious, for messages about its columns."""
        if self.kind in conll.EXTENSIONS:
            return f"{self.path.name}, read as CoNLL text (tables are {' '.join('.' + each for each in _TABLES)}),"
        return self.path.name

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The column names, in order. Raises UsageError if the content does not match the extension."""
        if self.kind == "parquet":
            names = self._parquet.schema_arrow.names
            self._check_header(names)
            return tuple(names)
        _, names = next(self._records())
        return tuple(names)

    def read(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """Columns as lists with one value per row. Raises UsageError for a missing column or a damaged file."""
        check_columns(self.title, self.columns, names)
        if self.kind == "parquet":
            try:
                table = self._parquet.read(columns=list(names))
            except (OSError, ValueError) as error:
                raise UsageError(f"cannot read {self.path.name}: {error}") from error
            return {name: table.column(name).to_pylist() for name in names}
        records = self._records()
        next(records)
        rows = [[row.get(name) for name in names] for _, row in records]
        return {name: [row[position] for row in rows] for position, name in enumerate(names)}

    def holds(self, column: str, kind: type[list[Any]] | type[dict[str, Any]]) -> bool:
        """Whether the first cell of a column that is not missing is a list, or a record. False if there is no such
        column."""
        if column not in self.columns or self.kind in SEPARATED:
            return False
        if self.kind == "parquet":
            from pyarrow import types

            stored = self._parquet.schema_arrow.field(column).type
            if kind is dict:
                return bool(types.is_struct(stored))
            return bool(types.is_list(stored) or types.is_large_list(stored) or types.is_fixed_size_list(stored))
        cells = (record.get(column) for _, record in islice(self._records(), 1, None))
        return isinstance(next((cell for cell in cells if cell is not None), None), kind)

    def class_names(self, column: str) -> tuple[str, ...]:
        """The names of a column of ``ClassLabel``, or of lists of them, of a parquet file that the library datasets
        wrote; else none."""
        if self.kind != "parquet":
            return ()
        metadata = self._parquet.schema_arrow.metadata or {}
        try:
            feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
            names = feature.get("feature", feature)["names"] or ()
        except (KeyError, TypeError, ValueError, AttributeError):
            return ()
        return tuple(map(str, names))

    @cached_property
    def note(self) -> str | None:
        """A sentence for the report on how a text file was read, if in an unusual way."""
        if self.kind not in SEPARATED:
            return None if self._encoding == "utf-8-sig" else f"{self.path.name} was read as {self._encoding}."
        usual = "," if self.kind == "csv" else "\t"
        how = [] if self._encoding == "utf-8-sig" else [f"as {self._encoding}"]
        how += [] if self._separator == usual else [f"with columns separated by {SEPARATORS[self._separator]}"]
        return f"{self.path.name} was read {', '.join(how)}." if how else None

    @cached_property
    def _parquet(self) -> Any:
        from pyarrow import ArrowException, parquet

        try:
            return parquet.ParquetFile(io.BytesIO(self._open().read()) if _extensions(self.path)[1] else self.path)
        except ArrowException as error:
            raise UsageError(f"{self.path.name} is named .parquet, but is not a parquet file ({error})") from error

    def _open(self) -> IO[bytes]:
        compression = _extensions(self.path)[1]
        return COMPRESSIONS[compression](self.path) if compression else self.path.open("rb")

    @cached_property
    def _encoding(self) -> str:
        if self.encoding:
            return self.encoding
        if self.kind == "parquet":
            return "utf-8-sig"
        with self._open() as file:
            return _MARKS.get(file.read(2), "utf-8-sig")

    def _text(self, newline: str | None = None) -> IO[str]:
        return io.TextIOWrapper(self._open(), encoding=self._encoding, newline=newline)

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield a record whose keys are the columns, then all records, each with its line number (from 1)."""
        path, kind = self.path, self.kind
        try:
            with self._open() as file:
                start = file.read(4)
            if start == b"PAR1":
                raise UsageError(f"{path.name} is a parquet file, not {kind}: name it .parquet")
            if not start.strip():
                raise UsageError(f"{path.name} is empty; a table with a header is needed")
            if kind in conll.EXTENSIONS:
                yield 1, dict.fromkeys((conll.WORDS, conll.TAGS))
                with self._text() as file:
                    yield from conll.sentences(path.name, file)
            else:
                yield from self._json_records() if kind == "jsonl" else self._separated_records()
        except UnicodeError as error:
            read_as = self.encoding or "UTF-8"
            raise UsageError(
                f"{path.name} is not {read_as} text ({error}); name its encoding, such as --encoding cp1252 "
                f"(Windows, western Europe), or save it as UTF-8"
            ) from error
        except csv.Error as error:
            reason = "a quotation is not closed" if "end of data" in str(error) else error
            raise UsageError(f"{path.name} is not a {kind} file: {reason}") from error
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError) as error:
            raise UsageError(f"{path.name} cannot be decompressed: {error}") from error

    def _rows(self, separator: str) -> Iterator[tuple[int, list[str]]]:
        """The rows that are not empty, each with its line number."""
        csv.field_size_limit(2**31 - 1)  # the default rejects long documents
        with self._text(newline="") as file:
            if self.kind == "tsv":
                rows = csv.reader(file, delimiter=separator, quoting=csv.QUOTE_NONE)
            else:
                rows = csv.reader(file, delimiter=separator, strict=True)
            for row in rows:
                if row:
                    yield rows.line_num, row

    def _separated_records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        rows = self._rows(self._separator)
        line, header = next(rows, (1, []))
        self._check_header(header)
        yield line, dict.fromkeys(header)
        for line, row in rows:
            if len(row) != len(header):
                raise UsageError(
                    f"{self.path.name}, line {line}: {len(row)} cells, but the header has {len(header)} columns"
                )
            yield line, dict(zip(header, row, strict=True))

    @cached_property
    def _separator(self) -> str:
        """The separator of a csv file: the one with which every row has as many cells as the header, at least two.

        Where none fits, the one that splits the header most, so that the parser names the line that does not fit.
        Raises UsageError where several fit.
        """
        if self.kind == "tsv":
            return "\t"
        read = {separator: self._first_rows(separator) for separator in SEPARATORS}
        fitting = {separator: rows[0] for separator, rows in read.items() if _is_table(rows)}
        if len(fitting) > 1:
            readings = " or ".join(f"{SEPARATORS[each]} ({' '.join(header)})" for each, header in fitting.items())
            raise UsageError(
                f"the columns of {self.path.name} may be separated by {readings}: put cells that contain another "
                f"separator in quotation marks, or give a .tsv or .jsonl file"
            )
        return next(iter(fitting), max(read, key=lambda separator: len(read[separator][0]) if read[separator] else 0))

    def _first_rows(self, separator: str) -> list[list[str]]:
        """The first rows by this separator; up to the first that cannot be parsed."""
        rows = []
        try:
            for _, row in islice(self._rows(separator), ROWS_TO_RECOGNISE):
                rows.append(row)
        except csv.Error:
            rows.append([])
        return rows

    def _check_header(self, header: Sequence[str]) -> None:
        if len(set(header)) != len(header):
            repeated = next(name for name in header if header.count(name) > 1)
            raise UsageError(f"{self.path.name} has two columns named {repeated!r}; column names must be unique")
        if self.kind == "tsv" and len(header) == 1 and "," in header[0]:
            raise UsageError(f"{self.path.name} is named .tsv, but its columns are separated by commas; name it .csv")

    def _json_records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._text() as file:
            first = True
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{self.path.name}, line {number}"
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UsageError(f"{where}: not JSON ({error}); one object per line") from error
                if not isinstance(record, dict):
                    kind = type(record).__name__
                    raise UsageError(f"{where}: a {kind}, not an object; one object per line is read")
                if first:
                    self._check_header([name for name, _ in json.loads(line, object_pairs_hook=list)])
                    yield number, dict.fromkeys(record)
                    first = False
                yield number, record


def _is_table(rows: Sequence[Sequence[str]]) -> bool:
    """Whether all rows have as many cells as the first, at least two, with names that differ."""
    if not rows or len(rows[0]) < 2:
        return False
    return len(set(rows[0])) == len(rows[0]) and all(len(row) == len(rows[0]) for row in rows)
