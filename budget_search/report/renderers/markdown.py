"""Render a report, or several side by side, as Markdown for a file or a model card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from budget_search.core.formatting import printable
from budget_search.report.comparisons.comparison import comparison
from budget_search.report.layout import Grid, Section
from budget_search.report.renderers.page_sections import details
from budget_search.report.renderers.terminal import grid_alignment
from budget_search.report.report import Report
from budget_search.report.sections import sections


def render(reports: Sequence[Report], exported: str | None = None) -> str:
    """One report whole, several side by side."""
    return _one(reports[0], exported) if len(reports) == 1 else render_sections(comparison(reports))


def render_sections(sections: Iterable[Section]) -> str:
    return "\n\n".join(map(markdown_section, sections))


def _one(report: Report, exported: str | None) -> str:
    """One whole report, with the summary first."""
    title, *rest, summary = sections(report, exported)
    setting = Section("Setting", title.facts)
    head = f"# {markdown_text(title.title)}"
    return "\n\n".join([head, *map(markdown_section, [summary, setting, *rest, *details(report)])])


def markdown_section(section: Section) -> str:
    """One section under a heading of the second level."""
    blocks = [f"## {markdown_text(section.title)}"]
    if section.facts:
        blocks.append(
            "\n".join(f"- **{markdown_text(name)}**: {markdown_text(value)}" for name, value in section.facts)
        )
    blocks += map(markdown_text, section.paragraphs)
    if section.grid:
        blocks.append(_grid(section.grid))
    if section.legend:
        blocks.append("\n".join(f"- {markdown_text(line)}" for line in section.legend))
    if section.code:
        blocks.append(f"```\n{section.code}\n```")
    return "\n\n".join(blocks)


def _grid(grid: Grid) -> str:
    rows = [[markdown_text(cell) for cell in row] for row in grid.rows]
    headers = list(map(markdown_text, grid.headers))
    return tabulate(
        rows, headers, tablefmt="pipe", disable_numparse=True, colalign=grid_alignment(grid) if rows else None
    )


def markdown_text(text: str) -> str:
    """The text on one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*|<\[])", r"\\\1", printable(text))
