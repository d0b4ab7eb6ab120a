"""Resolve a request: find its task, model and study, and the answers that the study already has.

Writes nothing.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from budget_search.app.request import Request
from budget_search.app.study_report import finished_report, readable_report
from budget_search.app.warm_start import WarmStart, warm_start_from
from budget_search.core.config import SearchConfig, in_points
from budget_search.core.errors import StudyError
from budget_search.core.formatting import tolerance
from budget_search.core.layers import LayerSet
from budget_search.data.kinds import require_supported
from budget_search.data.tasks import TaskSource, resolve_task, task_digest
from budget_search.layer_search.confirmation import Confirmations
from budget_search.models.pretrained import PretrainedSource, resolve_model
from budget_search.report.entries import Reference
from budget_search.report.report import Report
from budget_search.storage.study_folder import StudyFolder, require_writable, stored_config, study_path
from budget_search.storage.study_store import recorded_trials


@dataclass(frozen=True)
class ResolvedRequest:
    """A request with its resolved task and model, and the study it belongs to."""

    request: Request
    source: TaskSource
    pretrained: PretrainedSource
    config: SearchConfig
    folder: StudyFolder
    warm_start: WarmStart | None = None
    references: tuple[PretrainedSource, ...] = ()


def resolve_request(request: Request) -> ResolvedRequest:
    """Find task, model and study; reads no examples, loads no model, writes nothing. Raises UsageError."""
    source = resolve_task(
        request.task,
        data_dir=request.data_dir,
        text_columns=request.text_columns,
        label_column=request.label_column,
        metric=request.metric,
        kind=request.kind,
        validation=request.validation,
        encoding=request.encoding,
        skip_incomplete=request.skip_incomplete,
    )
    pretrained = resolve_model(request.model, offline=request.offline)
    recipe = request.recipe_from(source.spec.recipe)
    if recipe.distil:
        require_supported(source.spec.metric, "--distil")
    if request.reference:
        require_supported(source.spec.metric, "--reference")
    config = SearchConfig(
        task=source.name,
        task_digest=task_digest(source, offline=request.offline),
        metric=source.spec.metric,
        text_columns=tuple(source.spec.text_columns),
        label_column=source.spec.label_column,
        model=pretrained.name,
        model_digest=pretrained.digest,
        recipe=recipe,
        splits=request.splits_for(recipe),
        device=request.device,
        precision=request.precision,
    )
    folder = StudyFolder(study_path(request.studies_dir, request.study or config.study_name))
    if not folder.config.exists():
        require_writable(folder)
    warm_start = warm_start_from(request.start_from, request.studies_dir) if request.start_from else None
    references = resolve_references(request.reference, request.offline)
    return ResolvedRequest(request, source, pretrained, config, folder, warm_start, references)


def resolve_references(models: Iterable[str], offline: bool) -> tuple[PretrainedSource, ...]:
    """The reference models, each once. Raises UsageError."""
    return tuple(dict.fromkeys(resolve_model(model, offline=offline, option="--reference") for model in models))


def require_same_config(resolved: ResolvedRequest) -> None:
    """Raises StudyError where the study's folder belongs to another task, model or recipe."""
    stored = stored_config(resolved.folder)
    if stored["config"] != json.loads(json.dumps(resolved.config.to_json())):
        raise StudyError(
            f"the study {resolved.folder.path.name} was made with another task, model or recipe; "
            "choose another --study name, or leave it out"
        )


def known_report(resolved: ResolvedRequest) -> Report | None:
    """The study's report if it answers the same question for every delta asked; else None. Raises StudyError."""
    if not resolved.folder.report.is_file():
        return None
    require_same_config(resolved)
    return finished_report(resolved.folder, resolved.request.question, resolved.request.deltas)


def kept_references(resolved: ResolvedRequest) -> tuple[Reference, ...]:
    """The reference models in the study's report, as long as they were compared with the same baseline."""
    report, asked = readable_report(resolved.folder), resolved.request.question
    same = report and all(report.question.get(name) == asked[name] for name in ("seeds", "base_seed", "confidence"))
    return report.references if report and same else ()


def best_so_far(resolved: ResolvedRequest) -> str:
    """One sentence for a user who interrupted the search: which sets are confirmed by now."""
    if not resolved.folder.config.exists():
        return "Nothing was measured yet."
    request, folder = resolved.request, resolved.folder
    total = int(stored_config(folder)["facts"]["layers_total"])
    history = recorded_trials(folder.path.name, total, folder=folder, storage=request.storage)
    confirmations = Confirmations(history, total, request.confirmation_seeds)
    losses = {}
    if confirmations.is_complete(confirmations.full):
        losses = {layers: statistics.fmean(confirmations.degradations(layers)) for layers in confirmations.sets}
    # The report checks the other limits too; they need measurements.
    allow = request.limits.structural.allow
    named = [LayerSet.parse(text, total) for text in request.layers] or list(losses)
    how = "" if request.criterion == "observed" else f" on average (not yet checked by --criterion {request.criterion})"
    answers = []
    for delta in map(in_points, request.deltas):
        holding = [layers for layers in named if allow(layers) and losses.get(layers, math.inf) <= delta]
        if holding:
            best = min(holding, key=lambda layers: (layers.depth, losses[layers]))
            answers.append(f"layers {best.compact} of {total} are within {tolerance(delta / 100)}{how}")
    best_answers = f"So far, {', '.join(answers)}" if answers else "No answer is confirmed yet"
    return f"{best_answers}; {len(history)} evaluations are kept."
