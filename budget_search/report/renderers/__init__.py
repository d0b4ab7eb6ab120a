"""Renderers of reports: one module per format, and one row here.

A renderer is a function ``render(reports, exported)`` of one or several reports and the folder of the exported
checkpoint, if there is one. ``sections`` and ``page_sections`` hold the content of a report and its order; a renderer
only lays it out. Imports ``report`` and the rooms below it; ``report`` imports no renderer.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from budget_search.core.errors import UsageError

if TYPE_CHECKING:
    from budget_search.report.report import Report

    Renderer = Callable[[Sequence[Report], str | None], str]

# Format to ``module:function``, loaded on first use: only the HTML page needs Jinja and matplotlib.
FORMATS = {
    "table": "terminal:render",
    "markdown": "markdown:render",
    "latex": "latex:render",
    "html": "html:render",
    "json": "plain_data:render_json",
    "csv": "plain_data:render_csv",
}


def render(reports: Sequence[Report], form: str, exported: str | None = None) -> str:
    """One or several reports in one of ``FORMATS``; ``exported`` is the folder of the checkpoint, if there is one.

    Raises UsageError for ``html`` of several reports.
    """
    renderer: Renderer = pkgutil.resolve_name(f"{__name__}.{FORMATS[form]}")
    return renderer(reports, exported)


def render_averages(reports: Sequence[Report], form: str) -> str:
    """Mean scores by strategy and number of dropped layers. Raises UsageError for latex and html."""
    from budget_search.core.serialization import to_plain
    from budget_search.report.comparisons.strategy_averages import averages, averages_sections, flat_rows
    from budget_search.report.renderers import markdown, plain_data, terminal

    means = averages(reports)
    if form == "json":
        return json.dumps(to_plain(means), indent=2, allow_nan=False)
    if form == "csv":
        return plain_data.csv_lines([row for each in means for row in flat_rows(each)])
    if form == "markdown":
        return markdown.render_sections(averages_sections(means))
    if form == "table":
        return terminal.render_sections(averages_sections(means), titled=False)
    raise UsageError(f"--curves has no --format {form}; allowed: table markdown json csv")
