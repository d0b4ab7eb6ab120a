"""What text is laid out from: tables of cells, and sections around them that every format renders in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Grid:
    """A table of cells. Columns of numbers are named in ``right``; ``widths`` limits some where the page is narrow."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    widths: Mapping[str, int] = field(default_factory=dict)
    right: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """One part of the page, in this order: facts (name and value), paragraphs, a table, its legend, code."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    paragraphs: tuple[str, ...] = ()
    grid: Grid | None = None
    legend: tuple[str, ...] = ()
    code: str = ""
