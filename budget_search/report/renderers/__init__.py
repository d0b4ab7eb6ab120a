"""Turns reports into text: one module per format, and one row here.

A renderer is a function ``render(reports, exported)`` of one or several reports and the folder of the exported
checkpoint, if there is one. ``sections`` and ``page_sections`` say what a report tells and in which order; a renderer
only lays it out. May import ``report`` and the rooms below it; a ``Report`` knows none of its renderers.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from budget_search.report.report import Report

    Renderer = Callable[[Sequence[Report], str | None], str]

# Format to ``module:function``, loaded on first use: Jinja and matplotlib are needed for a page only.
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
