"""Render reports as JSON and CSV, unrounded."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence

from budget_search.core.layers import compact_indices
from budget_search.core.serialization import to_plain
from budget_search.report.entries import Result
from budget_search.report.report import Report
from budget_search.report.sentences import largest_batch

# Nested fields, and those that have columns of their own.
NOT_IN_CSV = {
    "kept", "dropped", "metrics", "inference", "nearest_rejected", "binding", "throughput", "peak_throughput",
    "changes",
}  # fmt: skip


def render_json(reports: Sequence[Report], exported: str | None = None) -> str:
    """The object of ``report.json``, or a list of them for several reports."""
    values = [report.to_json() for report in reports]
    return json.dumps(values[0] if len(values) == 1 else values, indent=2, allow_nan=False)


def render_csv(reports: Sequence[Report], exported: str | None = None) -> str:
    """One row per study and delta, in the units of ``report.json``, unrounded; inference of the largest batch.

    Then one per reference model, which has no delta.
    """
    return csv_lines([row for report in reports for row in _flat_rows(report)])


def csv_lines(rows: list[dict[str, object]]) -> str:
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
        own = {name: value for name, value in to_plain(reference).items() if name in columns}
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
    """One study's answer for one delta, with no nested value."""
    timed = largest_batch(result.inference)
    saved = timed.saved if timed else None
    flat = {name: value for name, value in to_plain(result).items() if name not in NOT_IN_CSV}
    return {
        **_identity(report),
        "kept": compact_indices(result.kept),
        "dropped": compact_indices(result.dropped),
        **flat,
        "inference_batch": timed.batch if timed else None,
        "inference_length": timed.length if timed else None,
        "inference_ms": timed.ms.median if timed else None,
        "inference_saved": saved.value if saved else None,
        "inference_saved_low": saved.low if saved else None,
        "inference_saved_high": saved.high if saved else None,
        "examples_per_second": result.throughput.examples_per_second if result.throughput else None,
    }
