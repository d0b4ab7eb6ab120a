"""What a study's folder says beside its trials: its configuration and its report, read and checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budget_search.errors import StudyError
from budget_search.files import write_json, write_whole
from budget_search.planning import in_points
from budget_search.report import Reference, Report
from budget_search.store import StudyFolder
from budget_search.trial import TrialKey

if TYPE_CHECKING:
    from budget_search.location import Found

# What config.json holds beside the configuration: found out when the study was made.
FACTS = ("layers_total", "layer_parameters", "undroppable", "device", "created")


def stored_config(folder: StudyFolder) -> dict[str, Any]:
    """``config`` and ``facts`` of a study. Raises StudyError when the folder is none, or damaged."""
    try:
        stored = json.loads(folder.config.read_text(encoding="utf8"))
        config, facts = stored["config"], stored["facts"]
        return {"config": config, "facts": {name: facts[name] for name in FACTS}}
    except FileNotFoundError:
        raise StudyError(f"{folder.path} is not a study: there is no config.json in it") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise StudyError(
            f"config.json of the study {folder.path.name} is damaged ({reason}); restore it, or move the folder away"
        ) from error


def require_same_config(found: Found) -> None:
    stored = stored_config(found.folder)
    if stored["config"] != json.loads(json.dumps(found.config.to_json())):
        raise StudyError(
            f"the study {found.folder.path.name} was made with another task, model or recipe; "
            "choose another --study name, or leave it out"
        )


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
    from budget_search.plots import content, draw
    from budget_search.render import render

    write_json(folder.report, report.to_json())
    for form, name in (("markdown", "report.md"), ("html", "report.html")):
        write_whole(folder.path / name, (render([report], form).rstrip("\n") + "\n").encode())
    pictures = draw(report)
    for name in ("frontier", "layers"):
        if name in pictures:
            write_whole(folder.path / f"{name}.png", content(pictures[name], "png"))


def finished_report(found: Found) -> Report | None:
    """The report of a study that has answered this very question for every delta asked; else None."""
    if not found.folder.report.is_file():
        return None
    require_same_config(found)
    report = read_report(found.folder)
    if report.finished is None or report.question != found.request.question:
        return None
    answered = {in_points(result.delta) for result in report.results}
    return report if {in_points(delta) for delta in found.request.deltas} <= answered else None


def earlier_report(found: Found) -> Report | None:
    """What the study answered before, for whatever deltas, to the same question; None where it cannot be read."""
    try:
        report = read_report(found.folder)
    except StudyError:
        return None
    return report if report.question == found.request.question else None


def kept_references(found: Found) -> tuple[Reference, ...]:
    """The models set beside the study's answers, as long as the baseline beside them is the same."""
    try:
        report = read_report(found.folder)
    except StudyError:
        return ()
    asked = found.request.question
    same = all(report.question.get(name) == asked[name] for name in ("seeds", "base_seed", "confidence"))
    return report.references if same else ()


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
