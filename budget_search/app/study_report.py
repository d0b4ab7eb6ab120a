"""What a study's folder says beside its trials: its configuration and its report, read and checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from budget_search.core.errors import StudyError
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
            "which writes it anew from the recorded trials"
        ) from error
    try:
        return Report.from_json(fields)
    except StudyError as error:
        raise StudyError(f"report.json of the study {folder.path.name} cannot be used: {error}") from error


def write_report(folder: StudyFolder, report: Report) -> None:
    """``report.json`` for programs, then for people ``report.md``, ``report.html`` and two of its pictures."""
    from budget_search.report.plots.figures import content, draw
    from budget_search.report.renderers import render

    write_json(folder.report, report.to_json())
    for form, name in (("markdown", "report.md"), ("html", "report.html")):
        write_atomically(folder.path / name, (render([report], form).rstrip("\n") + "\n").encode())
    pictures = draw(report)
    for name in ("frontier", "layers"):
        if name in pictures:
            write_atomically(folder.path / f"{name}.png", content(pictures[name], "png"))


def reduced(report: Report, deltas: Iterable[float]) -> Report:
    """With the answers for these deltas alone. Raises UsageError for one that was not asked."""
    return dataclasses.replace(report, results=tuple(report.result(delta) for delta in deltas))


def report_for(folder: StudyFolder, deltas: tuple[float, ...]) -> Report:
    """A study's report, reduced to these deltas if any are given. Raises StudyError and UsageError."""
    report = dataclasses.replace(read_report(folder), folder=folder.path)
    return reduced(report, deltas) if deltas else report


def confirmed_weights(folder: StudyFolder, report: Report, key: TrialKey) -> Path:
    """The folder of a confirmed model's weights. Raises StudyError when they are gone."""
    weights = folder.weights(key)
    if not weights.is_dir():
        raise StudyError(
            f"the weights of {key} are gone from the study {folder.path.name}; delete its report.json and run the "
            f"search again to restore them: {report.command}"
        )
    return weights
