"""The tables of ``comparison`` as LaTeX; they need the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tabulate import tabulate

from budget_search.core.formatting import printable
from budget_search.report.comparisons.comparison import DELTA, SAVED, comparison
from budget_search.report.renderers.terminal import grid_alignment
from budget_search.report.report import Report

# So that the widest table, with names of ordinary length, fits a page of an article.
_NARROW = r"\centering\footnotesize\setlength{\tabcolsep}{3.5pt}"


def render(reports: Sequence[Report], exported: str | None = None) -> str:
    """One table environment per section."""
    tables = []
    for section in comparison(reports):
        assert section.grid is not None
        body = tabulate(
            section.grid.rows, section.grid.headers, tablefmt="latex_booktabs", disable_numparse=True,
            colalign=grid_alignment(section.grid),
        )  # fmt: skip
        caption = " ".join(map(_latex_text, section.legend))
        tables.append("\n".join((r"\begin{table}", _NARROW, body, rf"\caption{{{caption}}}", r"\end{table}")))
    text = "\n\n".join(tables)
    for sign, code in ((DELTA, r"$\delta$"), (SAVED, r"$\downarrow$"), ("+-", r"$\pm$")):
        text = text.replace(sign, code)
    return text


def _latex_text(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", printable(text))
