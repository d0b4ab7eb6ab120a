"""What a study answered before: whether its report answers this request, and what of it is kept in the next one."""

from __future__ import annotations

import json

from budget_search.app.resolve import ResolvedRequest
from budget_search.app.study_report import read_report
from budget_search.core.config import in_points
from budget_search.core.errors import StudyError
from budget_search.core.layers import LayerSet, compact_indices
from budget_search.report.entries import Reference
from budget_search.report.report import Report
from budget_search.storage.study_folder import stored_config
from budget_search.storage.study_store import recorded_trials


def require_same_config(found: ResolvedRequest) -> None:
    stored = stored_config(found.folder)
    if stored["config"] != json.loads(json.dumps(found.config.to_json())):
        raise StudyError(
            f"the study {found.folder.path.name} was made with another task, model or recipe; "
            "choose another --study name, or leave it out"
        )


def finished_report(found: ResolvedRequest) -> Report | None:
    """The report of a study that has answered this very question for every delta asked; else None."""
    if not found.folder.report.is_file():
        return None
    require_same_config(found)
    report = read_report(found.folder)
    if report.finished is None or report.question != found.request.question:
        return None
    answered = {in_points(result.delta) for result in report.results}
    return report if {in_points(delta) for delta in found.request.deltas} <= answered else None


def earlier_report(found: ResolvedRequest) -> Report | None:
    """What the study answered before, for whatever deltas, to the same question; None where it cannot be read."""
    try:
        report = read_report(found.folder)
    except StudyError:
        return None
    return report if report.question == found.request.question else None


def kept_references(found: ResolvedRequest) -> tuple[Reference, ...]:
    """The models set beside the study's answers, as long as the baseline beside them is the same."""
    try:
        report = read_report(found.folder)
    except StudyError:
        return ()
    asked = found.request.question
    same = all(report.question.get(name) == asked[name] for name in ("seeds", "base_seed", "confidence"))
    return report.references if same else ()


def best_so_far(found: ResolvedRequest) -> str:
    """One sentence for somebody who interrupted the search: what is confirmed by now."""
    if not found.folder.config.exists():
        return "Nothing was measured yet."
    facts = stored_config(found.folder)["facts"]
    total = int(facts["layers_total"])
    history = recorded_trials(found.folder.path.name, total, folder=found.folder, storage=found.request.storage)
    scores: dict[tuple[int, ...], dict[int, float]] = {}
    for trial in history:
        if trial.split == "certification" and trial.score is not None:
            scores.setdefault(trial.layers.kept, {})[trial.key.seed] = trial.score
    seeds = set(found.request.confirmation_seeds)
    means = {kept: sum(by[s] for s in seeds) / len(seeds) for kept, by in scores.items() if seeds <= by.keys()}
    baseline = means.pop(tuple(range(total)), None)
    # Those limits that need nothing measured; the report knows the others.
    allow = found.request.limits.structural.allow
    named = [LayerSet.parse(text, total).kept for text in found.request.layers]
    means = {kept: mean for kept, mean in means.items() if allow(LayerSet(kept, total)) and kept in (named or means)}
    how = "hold" if found.request.criterion == "observed" else "hold in the mean"
    found_so_far = []
    for delta in found.request.deltas:
        holding = [kept for kept, mean in means.items() if baseline is not None and baseline - mean <= in_points(delta)]
        if holding:
            kept = min(holding, key=lambda kept: (len(kept), -means[kept]))
            found_so_far.append(f"within {in_points(delta):g} points layers {compact_indices(kept)} of {total} {how}")
    best = f"So far {', '.join(found_so_far)}" if found_so_far else "No answer is confirmed yet"
    return f"{best}; {len(history)} evaluations are kept."
