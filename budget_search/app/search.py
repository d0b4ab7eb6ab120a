"""From a request to a report: open the study, search, measure, tell. The only place where the parts meet."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from budget_search.app.earlier_answers import earlier_report, finished_report, kept_references, require_same_config
from budget_search.app.reference_models import ExecutionOptions, require_readable, with_references
from budget_search.app.resolve import ResolvedRequest
from budget_search.app.search_settings import search_settings
from budget_search.app.study_report import reduced, write_report
from budget_search.app.warm_start import warm_start_note
from budget_search.core.config import in_points
from budget_search.core.errors import StudyError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, TrialKey
from budget_search.core.versions import versions
from budget_search.models.pretrained import licence_of
from budget_search.report.report import Report
from budget_search.report.sentences import answer_sentence
from budget_search.storage.database import LockWait
from budget_search.storage.study_folder import StudyFolder, stored_config
from budget_search.storage.study_store import StudyStore, require_storage

if TYPE_CHECKING:
    from budget_search.app.observer import Observer
    from budget_search.core.trial import Job, Trial
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.device import Device
    from budget_search.engine.evaluation import EvaluationContext
    from budget_search.layer_search.settings import SearchSettings
    from budget_search.layer_search.verdict import Judgement


def answer(found: ResolvedRequest, observer: Observer, command: str = "") -> Report:
    """The report for a request: at once where the study has answered it already, else after a search."""
    report = finished_report(found) or run(found, observer, command)
    if found.references:
        report = with_references(found.folder, found.references, _options(found), observer)
    return dataclasses.replace(reduced(report, found.request.deltas), folder=found.folder.path)


def run(found: ResolvedRequest, observer: Observer, command: str = "") -> Report:
    """Search, or go on with an interrupted search, and write the report.

    Raises BudgetSearchError; whatever was evaluated by then is kept.
    """
    began = time.monotonic()
    if found.request.storage:
        require_storage(found.request.storage)
    require_readable(found.references, _options(found), found.config.recipe)
    from budget_search.app.create_study import create
    from budget_search.engine.device import resolve_device

    if not found.folder.config.exists():
        create(found, resolve_device(found.config.device, found.config.precision), observer)
    require_same_config(found)
    device = resolve_device(*_asked_device(found))
    if found.request.wait:
        observer.stage("waiting until no other command works on the study")
    with found.folder.locked(wait=found.request.wait):
        found.folder.remove_temporary_files()
        # Whoever held the study may have answered the question meanwhile.
        return finished_report(found) or _search(found, device, observer, command, began)


def _options(found: ResolvedRequest) -> ExecutionOptions:
    request = found.request
    return ExecutionOptions(
        request.workers, request.scheduler, request.trust_remote_code, request.wait, request.storage_timeout
    )


def _asked_device(found: ResolvedRequest) -> tuple[str, str]:
    """What "auto" came to when the study was made, so that its trials stay comparable."""
    device = stored_config(found.folder)["facts"]["device"]
    return str(device["name"]), str(device["precision"])


def _search(found: ResolvedRequest, device: Device, observer: Observer, command: str, began: float) -> Report:
    from budget_search.app.measure_answers import delete_unneeded_weights, measure_answers
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.dask_workers import workers_for
    from budget_search.engine.evaluation import EvaluationContext
    from budget_search.layer_search.loop import Search
    from budget_search.layer_search.state import SearchState
    from budget_search.report.builder import ReportBuilder, build_report
    from budget_search.report.predictions import PairedOutputs

    request, facts = found.request, stored_config(found.folder)["facts"]
    task = EncodedTask.load(found.folder.examples)
    store = _opened(found, facts, observer)
    # Worker processes may stand elsewhere.
    folder = StudyFolder(found.folder.path.resolve())
    context = EvaluationContext(
        folder, found.pretrained.folder, found.pretrained.name, found.config.recipe, device, request.trust_remote_code
    )
    workers = workers_for(context, found.config.device, request.workers, request.scheduler)
    settings = _settings(found, task, store, context, workers.count, began)
    workers.context = dataclasses.replace(context, teacher=settings.teacher)
    paired = PairedOutputs(found.folder, task, settings.total, settings.seeds)
    earlier, before = float(store.facts.get("wall_seconds", 0.0)), earlier_report(found)
    references = kept_references(found)

    def judge(layers: LayerSet, confidence: float) -> Judgement:
        return paired.compare(layers, "certification", confidence, among=state.confirmations.steady)

    def run_jobs(jobs: Iterable[Job | None]) -> Iterator[Trial]:
        for trial in workers.run(jobs):
            yield trial
            store.set_facts(wall_seconds=earlier + time.monotonic() - began)

    state = SearchState(settings, store, judge)
    search = Search(state, run_jobs, observer)
    observer.planned(settings, found.config, task, device, workers.count, store.history)
    try:
        search.run()
    finally:
        for trial in workers.untaken:
            store.keep(trial)
    # The report keeps the answers that were given before.
    asked_before = [result.delta for result in before.results] if before else []
    answers = state.answers(in_points(delta) for delta in sorted({*request.deltas, *asked_before}))
    heritage_note = [warm_start_note(state, found.warm_start.study)] if found.warm_start else []
    observer.stage("scoring the answers on held_out and timing them")
    measured = measure_answers(workers, state, answers)
    builder = ReportBuilder(state, search.fine_tuned, paired, measured, facts["layer_parameters"])
    report = build_report(
        builder=builder,
        task=task,
        answers=answers,
        identity={**_identity(found, facts, command), "similarities": store.facts.get("similarities")},
        wall_seconds=earlier + time.monotonic() - began,
        notes=[*search.notes(), *heritage_note],
        references=references,
    )
    write_report(found.folder, report)
    store.set_facts(answer=[answer_sentence(report, result) for result in report.results])
    delete_unneeded_weights(found.folder, state, answers.values())
    return report


def _opened(found: ResolvedRequest, facts: dict[str, Any], observer: Observer) -> StudyStore:
    """The study's trials. Raises StudyError where the storage has others by that name."""
    storage, wait = found.request.storage, LockWait(60 * found.request.storage_timeout, observer.stage)
    store = StudyStore.open(
        found.folder.path.name, facts["layers_total"], folder=found.folder, storage=storage, wait=wait
    )
    if store.facts.get("fingerprint", found.config.fingerprint) != found.config.fingerprint:
        raise StudyError(
            f"the storage holds a study {found.folder.path.name} of another task, model or recipe; "
            "choose another --study name"
        )
    store.set_facts(fingerprint=found.config.fingerprint)
    store.record_all()
    return store


def _settings(
    found: ResolvedRequest, task: EncodedTask, store: StudyStore, context: EvaluationContext, width: int, began: float
) -> SearchSettings:
    """The request's plan, with what must be measured of the model first and what the study has noted."""
    from budget_search.app.measured_limits import with_measured_limits

    request, facts = found.request, stored_config(found.folder)["facts"]
    settings = search_settings(found, facts, task, with_measured_limits(request.limits, facts, context), width)
    if settings.budget.max_hours is not None:
        # Reading the task and the model counts as well.
        left = max(0.0, settings.budget.max_hours - (time.monotonic() - began) / 3600)
        settings = dataclasses.replace(settings, budget=dataclasses.replace(settings.budget, max_hours=left))
    if request.strategy == "contribution" and not request.layers:
        settings = dataclasses.replace(settings, similarities=_similarities(store, context))
    if found.config.recipe.distil:
        settings = dataclasses.replace(settings, teacher_seed=_teacher_seed(store, settings))
    return settings


def _identity(found: ResolvedRequest, facts: dict[str, Any], command: str) -> dict[str, Any]:
    return {
        "study": found.folder.path.name,
        "task": found.config.task,
        "model": found.config.model,
        "revision": found.config.model_digest,
        "created": facts["created"],
        "command": command,
        "versions": versions(),
        "device": facts["device"],
        "recipe": found.config.recipe.to_json(),
        "question": found.request.question,
        "license": licence_of(found.pretrained),
    }


def _teacher_seed(store: StudyStore, settings: SearchSettings) -> int:
    """One for the whole study, whatever seeds are asked for later: the first that was asked for and is there."""
    noted: int | None = store.facts.get("teacher_seed")
    trial = None if noted is None else store.find(TrialKey(LayerSet.full(settings.total), FULL_RUNG, noted))
    if noted is not None and trial is not None and trial.state != "failed":
        return noted
    # Nothing has learnt from it yet.
    store.set_facts(teacher_seed=settings.seeds[0])
    return settings.seeds[0]


def _similarities(store: StudyStore, context: EvaluationContext) -> tuple[float, ...]:
    from budget_search.engine.layer_similarity import layer_similarities

    known: Sequence[float] | None = store.facts.get("similarities")
    if known is None:
        known = layer_similarities(context)
        store.set_facts(similarities=list(known))
    return tuple(known)
