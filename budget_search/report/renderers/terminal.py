"""Render a report, or several side by side, for a terminal of 80 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from budget_search.core.formatting import printable
from budget_search.report.comparisons.comparison import comparison
from budget_search.report.layout import Grid, Section
from budget_search.report.report import Report
from budget_search.report.sections import sections

COLUMNS = 80


def render(reports: Sequence[Report], exported: str | None = None) -> str:
    """One report whole, several side by side; only code may be wider than the terminal."""
    if len(reports) == 1:
        return render_sections(sections(reports[0], exported))
    return render_sections(comparison(reports), titled=False)


def render_sections(sections: Iterable[Section], *, titled: bool = True) -> str:
    """Sections one below the other; if ``titled``, the first title becomes the title of the whole text."""
    first = 0 if titled else 1
    return "\n\n".join(_section(section, index) for index, section in enumerate(sections, start=first))


def _section(section: Section, index: int) -> str:
    blocks = []
    if section.facts:
        margin = 2 + max(len(printable(name)) for name, _ in section.facts)
        blocks.append("\n".join(_hanging(f"{printable(name):{margin}}", value) for name, value in section.facts))
    blocks += [_filled(paragraph) for paragraph in section.paragraphs]
    if section.grid:
        blocks.append(_grid(section.grid))
    if section.legend:
        blocks.append("\n".join(map(_filled, section.legend)))
    if section.code:
        blocks.append(textwrap.indent(section.code, "    "))
    title = _filled(section.title)
    return f"{title}\n{('-' if index else '=') * min(len(title), COLUMNS)}\n" + "\n\n".join(blocks)


def _filled(text: str) -> str:
    return textwrap.fill(printable(text), COLUMNS)


def _hanging(name: str, value: str) -> str:
    indent = " " * len(name)
    return textwrap.fill(printable(value), COLUMNS, initial_indent=name, subsequent_indent=indent)


def _grid(grid: Grid) -> str:
    limits = [grid.widths.get(header, COLUMNS) for header in grid.headers]
    table = [
        [_folded(cell, limit) for cell, limit in zip(row, limits, strict=True)] for row in [grid.headers, *grid.rows]
    ]
    # Headers are rows, because tabulate makes header columns two characters too wide.
    rule = ["-" * max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*table, strict=True)]
    rows = [table[0], rule, *table[1:]]
    text = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=grid_alignment(grid))
    return "\n".join(line.rstrip() for line in text.splitlines())


def grid_alignment(grid: Grid) -> list[str]:
    """The alignment of every column, in tabulate's terms."""
    return ["right" if header in grid.right else "left" for header in grid.headers]


def _folded(cell: str, width: int) -> str:
    """Wrap the cell at spaces and after commas; break words only if they are too long."""
    lines = [""]
    for piece in re.findall(r"[^\s,]+,?\s*|[\s,]+", printable(cell)):
        if len((lines[-1] + piece).rstrip()) > width and lines[-1]:
            lines.append("")
        rest = lines.pop() + piece
        while len(rest.rstrip()) > width:
            lines.append(rest[:width])
            rest = rest[width:]
        lines.append(rest)
    return "\n".join(line.rstrip() for line in lines)
