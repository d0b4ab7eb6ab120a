"""Read and write the report in a study's folder, restrict it to some deltas, and find the weights it refers to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from budget_search.core.config import in_points
from budget_search.core.errors import StudyError, UsageError
from budget_search.core.formatting import tolerance
from budget_search.core.trial import TrialKey
from budget_search.report.report import Report
from budget_search.storage.files import write_atomically, write_json
from budget_search.storage.study_folder import StudyFolder


def read_report(folder: StudyFolder) -> Report:
    """Raises StudyError when there is none, or it is damaged."""
    try:
        fields = json.loads(folder.report.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise StudyError(f"the study {folder.path.name} has no report yet; run the search that made it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(
            f"report.json of the study {folder.path.name} is damaged ({error}); delete it and run the search again, "
            "which rebuilds it from the recorded trials"
        ) from error
    try:
        return Report.from_json(fields)
    except StudyError as error:
        raise StudyError(f"report.json of the study {folder.path.name} cannot be used: {error}") from error


def finished_report(folder: StudyFolder, question: Mapping[str, Any], deltas: Iterable[float]) -> Report | None:
    """The study's report if it answers this question for every delta (a fraction); else None. Raises StudyError."""
    if not folder.report.is_file():
        return None
    report = read_report(folder)
    if report.finished is None or report.question != question:
        return None
    answered = {in_points(result.delta) for result in report.results}
    return report if set(map(in_points, deltas)) <= answered else None


def deltas_to_report(
    folder: StudyFolder, question: Mapping[str, Any], asked: Iterable[float], is_withdrawn: Callable[[float], bool]
) -> tuple[list[float], list[str]]:
    """The deltas (fractions) of the next report, and notes on the earlier ones that it leaves out.

    A report keeps the answers to the same question for earlier deltas, unless later runs withdrew them
    (``is_withdrawn``, by the delta in points): a larger set that nobody searched for would take their place.
    """
    report, asked = readable_report(folder), set(asked)
    earlier = {each.delta for each in report.results} - asked if report and report.question == question else set()
    withdrawn = {delta for delta in earlier if is_withdrawn(in_points(delta))}
    notes = [
        f"Later runs withdrew the earlier answer within {tolerance(delta)}; a search with this delta finds a new one."
        for delta in sorted(withdrawn)
    ]
    return sorted((asked | earlier) - withdrawn), notes


def readable_report(folder: StudyFolder) -> Report | None:
    try:
        return read_report(folder)
    except StudyError:
        return None


def require_weights_kept(report: Report) -> None:
    """Raises UsageError for a study of a user's own objective, which keeps no models."""
    if not report.keeps_weights:
        raise UsageError(
            f"the study {report.study} used a user-defined objective, so it has no models: train and save the "
            "answer with the code that the objective trains with"
        )


def write_report(folder: StudyFolder, report: Report) -> None:
    """Write ``report.md``, ``report.html``, two pictures and, last, ``report.json``: the study is finished."""
    from budget_search.report.plots.figures import content
    from budget_search.report.plots.study_plots import draw
    from budget_search.report.renderers import render

    for form, name in (("markdown", "report.md"), ("html", "report.html")):
        write_atomically(folder.path / name, (render([report], form).rstrip("\n") + "\n").encode())
    pictures = draw(report)
    for name in ("frontier", "layers"):
        if name in pictures:
            write_atomically(folder.path / f"{name}.png", content(pictures[name], "png"))
    write_json(folder.report, report.to_json())


def select_deltas(report: Report, deltas: Iterable[float]) -> Report:
    """The report with the answers for these deltas alone. Raises UsageError for a delta that was not asked."""
    return dataclasses.replace(report, results=tuple(report.result(delta) for delta in deltas))


def report_for(folder: StudyFolder, deltas: tuple[float, ...]) -> Report:
    """A study's report, with the answers for these deltas alone if any are given. Raises StudyError and UsageError."""
    report = dataclasses.replace(read_report(folder), folder=folder.path)
    return select_deltas(report, deltas) if deltas else report


def confirmed_weights(folder: StudyFolder, report: Report, key: TrialKey) -> Path:
    """The folder of a confirmed model's weights. Raises StudyError when they are gone."""
    weights = folder.weights(key)
    if not weights.is_dir():
        raise StudyError(
            f"the weights of {key} are gone from the study {folder.path.name}; delete its report.json and run the "
            f"search again to restore them: {report.command}"
        )
    return weights
