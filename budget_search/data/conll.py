"""Read tagged sentences from CoNLL text: a word per line with its tag last, and an empty line after each sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from budget_search.core.errors import UsageError

EXTENSIONS = ("conll", "txt")
WORDS, TAGS = "words", "tags"
"""The columns that a CoNLL file has as a table: lists, one row per sentence."""
_DOCUMENT = "-DOCSTART-"


def sentences(name: str, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, list[str]]]]:
    """Yield the words and tags of each sentence with the number of its first line (from 1).

    The cells of a line are separated by tabs, or else by spaces. Lines that begin a document (-DOCSTART-) are left
    out, and so are comments: lines that begin with # and have another number of cells than the other lines. Raises
    UsageError, which names the file ``name`` and the line, for a line without a tag.
    """
    numbered = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    usual = 0
    for has_words, block in groupby(numbered, key=lambda each: bool(each[1])):
        rows = [(number, _cells(line)) for number, line in block] if has_words else []
        usual = next((len(cells) for _, cells in rows if not cells[0].startswith("#")), usual)
        rows = [(number, cells) for number, cells in rows if not cells[0].startswith("#") or len(cells) == usual]
        rows = [(number, cells) for number, cells in rows if cells[0] != _DOCUMENT]
        for number, cells in rows:
            if len(cells) < 2:
                raise UsageError(
                    f"{name}, line {number}: {cells[0]!r} alone; a line of CoNLL text holds a word first and its tag "
                    "last, and an empty line ends a sentence"
                )
        if rows:
            yield rows[0][0], {WORDS: [cells[0] for _, cells in rows], TAGS: [cells[-1] for _, cells in rows]}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()
