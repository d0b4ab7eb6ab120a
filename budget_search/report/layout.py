"""Sections and tables: the input of the renderers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Grid:
    """A table of cells. ``right`` names the right-aligned columns; ``widths`` limits columns in a terminal."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    widths: Mapping[str, int] = field(default_factory=dict)
    right: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """One part of a report, in this order: facts (name and value), paragraphs, a table, its legend, code."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    paragraphs: tuple[str, ...] = ()
    grid: Grid | None = None
    legend: tuple[str, ...] = ()
    code: str = ""
