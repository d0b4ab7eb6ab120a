"""The mean scores of several studies by strategy, as text in one of four formats."""

from __future__ import annotations

import json
from collections.abc import Sequence

from budget_search.core.errors import UsageError
from budget_search.core.serialization import to_plain
from budget_search.report.renderers import markdown, terminal
from budget_search.report.renderers.plain_data import csv_lines
from budget_search.report.report import Report
from budget_search.report.strategy_averages import averages, averages_sections, flat_rows


def render_averages(reports: Sequence[Report], form: str) -> str:
    """Mean scores by strategy and number of dropped layers; raises UsageError for latex and html."""
    means = averages(reports)
    if form == "json":
        return json.dumps(to_plain(means), indent=2, allow_nan=False)
    if form == "csv":
        return csv_lines([row for each in means for row in flat_rows(each)])
    told = averages_sections(means)
    if form == "markdown":
        return markdown.render_sections(told)
    if form != "table":
        raise UsageError(f"--curves has no --format {form}; allowed: table markdown json csv")
    return terminal.render_sections(told, titled=False)
