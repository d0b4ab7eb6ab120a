"""A report as text: a table for the terminal, Markdown, LaTeX, JSON, CSV; several reports side by side."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence

from tabulate import tabulate

from budget_search.averages import averages, averages_sections, flat_rows
from budget_search.comparison import DELTA, SAVED, comparison
from budget_search.details import details
from budget_search.errors import UsageError
from budget_search.inspection import Inspection
from budget_search.layer_sections import layer_sections
from budget_search.layers import compact_indices
from budget_search.layout import Grid, Section
from budget_search.records import plain
from budget_search.report import Report, Result
from budget_search.sections import sections
from budget_search.wording import largest_batch, printable

COLUMNS = 80
# The widest of these tables, with names of ordinary length, on a page of an article.
_NARROW = r"\centering\footnotesize\setlength{\tabcolsep}{3.5pt}"
NOT_IN_CSV = {
    "kept",
    "dropped",
    "metrics",
    "inference",
    "nearest_rejected",
    "binding",
    "throughput",
    "changes",
}  # written otherwise, or not flat


def render(reports: Sequence[Report], form: str, exported: str | None = None) -> str:
    """One or several reports in one of ``FORMS``; ``exported`` is the folder of the checkpoint, if there is one."""
    return FORMS[form](reports, exported)


def table(report: Report, exported: str | None = None) -> str:
    """For a terminal of 80 columns (only code may be longer)."""
    return "\n\n".join(_terminal_section(section, index) for index, section in enumerate(sections(report, exported)))


def markdown(report: Report, exported: str | None = None) -> str:
    """For a file; what matters most, the answer in short, comes first."""
    title, *rest, conclusion = sections(report, exported)
    overview = Section("The setting", title.facts)
    head = f"# {markdown_text(title.title)}"
    return "\n\n".join([head, *map(markdown_section, [conclusion, overview, *rest, *details(report)])])


def inspected(inspection: Inspection, form: str) -> str:
    """A study's inspection as ``table``, ``markdown`` or ``json``."""
    if form == "json":
        return json.dumps(inspection.to_json(), indent=2, allow_nan=False)
    told = layer_sections(inspection)
    if form == "markdown":
        return "\n\n".join(map(markdown_section, told))
    return "\n\n".join(_terminal_section(section, index) for index, section in enumerate(told))


def averaged(reports: Sequence[Report], form: str) -> str:
    """Mean scores by strategy and number of dropped layers; raises UsageError for latex and html."""
    means = averages(reports)
    if form == "json":
        return json.dumps(plain(means), indent=2, allow_nan=False)
    if form == "csv":
        return _csv([row for each in means for row in flat_rows(each)])
    told = averages_sections(means)
    if form == "markdown":
        return "\n\n".join(map(markdown_section, told))
    if form != "table":
        raise UsageError(f"--curves has no --format {form}; allowed: table markdown json csv")
    return "\n\n".join(_terminal_section(section, index) for index, section in enumerate(told, start=1))


def latex(reports: Sequence[Report]) -> str:
    """The tables of ``comparison`` for a paper; they want the package booktabs."""
    tables = []
    for section in comparison(reports):
        assert section.grid is not None
        body = tabulate(
            section.grid.rows, section.grid.headers, tablefmt="latex_booktabs", disable_numparse=True,
            colalign=_alignment(section.grid),
        )  # fmt: skip
        caption = " ".join(map(_latex_text, section.legend))
        tables.append("\n".join((r"\begin{table}", _NARROW, body, rf"\caption{{{caption}}}", r"\end{table}")))
    text = "\n\n".join(tables)
    for sign, code in ((DELTA, r"$\delta$"), (SAVED, r"$\downarrow$"), ("+-", r"$\pm$")):
        text = text.replace(sign, code)
    return text


def _latex_text(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", printable(text))


def _terminal_section(section: Section, index: int) -> str:
    blocks = []
    if section.facts:
        margin = 2 + max(len(printable(name)) for name, _ in section.facts)
        blocks.append("\n".join(_hanging(f"{printable(name):{margin}}", value) for name, value in section.facts))
    blocks += [_filled(paragraph) for paragraph in section.paragraphs]
    if section.grid:
        blocks.append(_terminal_grid(section.grid))
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


def _terminal_grid(grid: Grid) -> str:
    limits = [grid.widths.get(header, COLUMNS) for header in grid.headers]
    table = [
        [_folded(cell, limit) for cell, limit in zip(row, limits, strict=True)] for row in [grid.headers, *grid.rows]
    ]
    # Not tabulate's own headers: it makes their columns two wider than they need be.
    rule = ["-" * max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*table, strict=True)]
    rows = [table[0], rule, *table[1:]]
    text = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=_alignment(grid))
    return "\n".join(line.rstrip() for line in text.splitlines())


def _alignment(grid: Grid) -> list[str]:
    return ["right" if header in grid.right else "left" for header in grid.headers]


def _folded(cell: str, width: int) -> str:
    """The cell on several lines, broken at spaces and after commas, within words only where one is too long."""
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


def markdown_section(section: Section) -> str:
    """One section under a heading of the second level."""
    blocks = [f"## {markdown_text(section.title)}"]
    if section.facts:
        blocks.append(
            "\n".join(f"- **{markdown_text(name)}**: {markdown_text(value)}" for name, value in section.facts)
        )
    blocks += map(markdown_text, section.paragraphs)
    if section.grid:
        blocks.append(_markdown_grid(section.grid))
    if section.legend:
        blocks.append("\n".join(f"- {markdown_text(line)}" for line in section.legend))
    if section.code:
        blocks.append(f"```\n{section.code}\n```")
    return "\n\n".join(blocks)


def _markdown_grid(grid: Grid) -> str:
    rows = [[markdown_text(cell) for cell in row] for row in grid.rows]
    headers = list(map(markdown_text, grid.headers))
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=_alignment(grid) if rows else None)


def markdown_text(text: str) -> str:
    """On one line, with the characters escaped that Markdown would take for structure."""
    return re.sub(r"([\\`*|<\[])", r"\\\1", printable(text))


def json_text(reports: Sequence[Report]) -> str:
    """The object of ``report.json``, or a list of them for several reports."""
    values = [report.to_json() for report in reports]
    return json.dumps(values[0] if len(values) == 1 else values, indent=2, allow_nan=False)


def csv_text(reports: Sequence[Report]) -> str:
    """One row per study and delta, in the units of ``report.json``, unrounded; inference of the largest batch.

    Then one per reference model, which has no delta.
    """
    return _csv([row for report in reports for row in _flat_rows(report)])


def _csv(rows: list[dict[str, object]]) -> str:
    file = io.StringIO()
    if rows:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return file.getvalue().rstrip("\n")


def _flat_rows(report: Report) -> Iterator[dict[str, object]]:
    columns: dict[str, object] = {}
    for result in report.results:
        columns = flat_row(report, result)
        yield columns
    for reference in report.references:
        own = {name: value for name, value in plain(reference).items() if name in columns}
        yield {**dict.fromkeys(columns), **_identity(report), **own}


def _identity(report: Report) -> dict[str, object]:
    return {
        "study": report.study,
        "task": report.task,
        "model": report.model,
        "metric": report.metric,
        "layers_total": report.layers_total,
        "baseline_score": report.baseline.score,
    }


def flat_row(report: Report, result: Result) -> dict[str, object]:
    """One study's answer to one delta, without anything nested."""
    timed = largest_batch(result.inference)
    saved = timed.saved if timed else None
    simple = {name: value for name, value in plain(result).items() if name not in NOT_IN_CSV}
    return {
        **_identity(report),
        "kept": compact_indices(result.kept),
        "dropped": compact_indices(result.dropped),
        **simple,
        "inference_batch": timed.batch if timed else None,
        "inference_length": timed.length if timed else None,
        "inference_ms": timed.ms.median if timed else None,
        "inference_saved": saved.value if saved else None,
        "inference_saved_low": saved.low if saved else None,
        "inference_saved_high": saved.high if saved else None,
        "examples_per_second": result.throughput.examples_per_second if result.throughput else None,
    }


def html(report: Report, exported: str | None = None) -> str:
    """The file ``report.html``; needs matplotlib and Jinja, which the other forms do without."""
    from budget_search.page import page

    return page(report, exported)


def _one_or_compared(
    one: Callable[[Report, str | None], str], section: Callable[[Section, int], str]
) -> Callable[[Sequence[Report], str | None], str]:
    """A form that shows one report whole and several side by side."""

    def text(reports: Sequence[Report], exported: str | None) -> str:
        if len(reports) == 1:
            return one(reports[0], exported)
        return "\n\n".join(section(each, index) for index, each in enumerate(comparison(reports), start=1))

    return text


def _only_one(reports: Sequence[Report], exported: str | None) -> str:
    if len(reports) != 1:
        raise UsageError(f"--format html shows one study, received {len(reports)}; several fit in markdown or latex")
    return html(reports[0], exported)


FORMS: dict[str, Callable[[Sequence[Report], str | None], str]] = {
    "table": _one_or_compared(table, _terminal_section),
    "markdown": _one_or_compared(markdown, lambda section, _: markdown_section(section)),
    "latex": lambda reports, exported: latex(reports),
    "html": _only_one,
    "json": lambda reports, exported: json_text(reports),
    "csv": lambda reports, exported: csv_text(reports),
}
