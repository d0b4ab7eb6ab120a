"""Run a request: open the study, search, measure the answers, write the report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from budget_search.app.reference_models import ExecutionOptions, require_readable, with_references
from budget_search.app.resolve import ResolvedRequest, kept_references, known_report
from budget_search.app.shared_baseline import take_over_baseline
from budget_search.app.study_report import deltas_to_report, select_deltas, write_report
from budget_search.app.study_run import Clock, open_store, run_search
from budget_search.app.warm_start import warm_start_note
from budget_search.core.config import SearchConfig, in_points
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Trial, TrialKey
from budget_search.core.versions import versions
from budget_search.layer_search.settings import SearchObserver, SearchSettings
from budget_search.models.pretrained import licence_of
from budget_search.report.report import Report
from budget_search.report.sentences import answer_sentence
from budget_search.storage.study_folder import StudyFolder, stored_config
from budget_search.storage.study_store import StudyStore, require_storage

if TYPE_CHECKING:
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.device import Device
    from budget_search.engine.evaluation import EvaluationContext
    from budget_search.engine.parallel.workers import Workers
    from budget_search.layer_search.loop import Search
    from budget_search.report.predictions import PairedOutputs


class Observer(SearchObserver, Protocol):
    """A search's observer that is also told the settings, before the first evaluation."""

    def planned(
        self,
        settings: SearchSettings,
        config: SearchConfig,
        task: EncodedTask,
        device: Device,
        workers: int,
        known: Sequence[Trial],
    ) -> None: ...


def search_or_read(resolved: ResolvedRequest, observer: Observer, command: str = "") -> Report:
    """The report for a request: read from the study if it has the answers already, else the result of a search.

    ``command`` is what the report names to reproduce it. Raises BudgetSearchError; finished evaluations are kept.
    """
    report = known_report(resolved) or _search(resolved, observer, command)
    if resolved.references:
        report = with_references(resolved.folder, resolved.references, _options(resolved), observer)
    return dataclasses.replace(select_deltas(report, resolved.request.deltas), folder=resolved.folder.path)


def _search(resolved: ResolvedRequest, observer: Observer, command: str) -> Report:
    """Search, or resume an interrupted search, and write the report."""
    began = time.monotonic()
    if resolved.request.storage:
        require_storage(resolved.request.storage)
    require_readable(resolved.references, _options(resolved), resolved.config)
    from budget_search.app.create_study import create
    from budget_search.app.search_settings import study_device

    if not resolved.folder.config.exists():
        create(resolved, study_device(resolved), observer)
    device = study_device(resolved)
    if resolved.request.wait:
        observer.stage("waiting for another command that is working on the study")
    with resolved.folder.locked(wait=resolved.request.wait):
        resolved.folder.remove_temporary_files()
        # The command that held the lock may have found the answers meanwhile.
        if report := known_report(resolved):
            return report
        study = _open(resolved, device, observer, began)
        observer.planned(study.settings, resolved.config, study.task, device, study.workers.count, study.store.history)
        search = run_search(study.settings, study.store, study.workers, study.paired, observer, study.clock)
        observer.stage("scoring the answers on held_out and timing them")
        return _report(study, search, command)


def _options(resolved: ResolvedRequest) -> ExecutionOptions:
    request = resolved.request
    return ExecutionOptions(
        request.workers, request.scheduler, request.trust_remote_code, request.wait, request.storage_timeout
    )


@dataclass(frozen=True)
class OpenStudy:
    """A study with its trials, its workers and the settings of the search."""

    resolved: ResolvedRequest
    task: EncodedTask
    store: StudyStore
    workers: Workers
    settings: SearchSettings
    paired: PairedOutputs
    clock: Clock


def _open(resolved: ResolvedRequest, device: Device, observer: Observer, began: float) -> OpenStudy:
    from budget_search.app.search_settings import evaluation_context
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.parallel.dask_workers import workers_for
    from budget_search.report.predictions import PairedOutputs

    request = resolved.request
    task = EncodedTask.load(resolved.folder.examples)
    store = open_store(resolved.folder, resolved.config.fingerprint, request, observer)
    take_over_baseline(resolved, store, observer)
    # Worker processes may have another working directory.
    context = evaluation_context(resolved, StudyFolder(resolved.folder.path.resolve()), device)
    workers = workers_for(context, resolved.config.device, request.workers, request.scheduler)
    clock = Clock.of(store, began)
    settings = _settings(resolved, task, store, context, workers.count, clock.seconds)
    workers.context = dataclasses.replace(context, teacher=settings.teacher)
    return OpenStudy(
        resolved=resolved,
        task=task,
        store=store,
        workers=workers,
        settings=settings,
        paired=PairedOutputs(resolved.folder, task, settings.total, settings.seeds),
        clock=clock,
    )


def _settings(
    resolved: ResolvedRequest,
    task: EncodedTask,
    store: StudyStore,
    context: EvaluationContext,
    width: int,
    spent_seconds: float,
) -> SearchSettings:
    """The settings by the request, by measurements of the model, and by facts that the study keeps."""
    from budget_search.app.search_settings import search_settings, with_measured_limits

    request, facts = resolved.request, stored_config(resolved.folder)["facts"]
    limits = with_measured_limits(request.limits, facts, context)
    settings = search_settings(resolved, facts, task, limits, width)
    settings = dataclasses.replace(settings, budget=settings.budget.after(spent_seconds))
    if request.strategy == "contribution" and not request.layers:
        settings = dataclasses.replace(settings, similarities=_similarities(store, context))
    if resolved.config.recipe.distil:
        settings = dataclasses.replace(settings, teacher_seed=_teacher_seed(store, settings))
    return settings


def _teacher_seed(store: StudyStore, settings: SearchSettings) -> int:
    """The teacher's seed, fixed for the whole study: the first seed with a finished teacher."""
    noted: int | None = store.facts.get("teacher_seed")
    trial = None if noted is None else store.find(TrialKey(LayerSet.full(settings.total), FULL_RUNG, noted))
    if noted is not None and trial is not None and trial.state != "failed":
        return noted
    # No smaller model has learnt from it yet.
    store.set_facts(teacher_seed=settings.seeds[0])
    return settings.seeds[0]


def _similarities(store: StudyStore, context: EvaluationContext) -> tuple[float, ...]:
    from budget_search.engine.measurements.layer_similarity import layer_similarities

    known: Sequence[float] | None = store.facts.get("similarities")
    if known is None:
        known = layer_similarities(context)
        store.set_facts(similarities=list(known))
    return tuple(known)


def _report(study: OpenStudy, search: Search, command: str) -> Report:
    """Score and time the answers, write the report, delete weights that no answer can need."""
    from budget_search.app.measure_answers import delete_unneeded_weights, measure_answers
    from budget_search.report.builder import ReportBuilder, build_report, split_summaries

    resolved, store, state = study.resolved, study.store, search.state
    facts, warm_start = stored_config(resolved.folder)["facts"], resolved.warm_start
    deltas, withdrawn = deltas_to_report(
        resolved.folder, resolved.request.question, resolved.request.deltas, state.is_withdrawn
    )
    answers = state.answers(map(in_points, deltas))
    measured = measure_answers(study.workers, state, answers)
    report = build_report(
        builder=ReportBuilder(state, search.fine_tuned, study.paired, measured, facts["layer_parameters"]),
        answers=answers,
        identity={
            **_identity(resolved, facts, command),
            "metric": study.task.metric,
            "splits": split_summaries(study.task),
            "device": {**facts["device"], **execution(store.history)},
            "similarities": store.facts.get("similarities"),
        },
        wall_seconds=study.clock.seconds,
        notes=[
            *study.task.notes,
            *search.notes(),
            *withdrawn,
            *([warm_start_note(state, warm_start.study)] if warm_start else []),
        ],
        references=kept_references(resolved),
    )
    write_report(resolved.folder, report)
    store.set_facts(answer=[answer_sentence(report, result) for result in report.results])
    delete_unneeded_weights(resolved.folder, state, answers.values())
    return report


def execution(history: Iterable[Trial]) -> dict[str, str]:
    """How the training steps ran: "graph", or "eager" with the reason if any trial ran eagerly. Empty if no trial
    recorded it."""
    said = {trial.execution for trial in history if trial.execution}
    return {"execution": min(said)} if said else {}


def _identity(resolved: ResolvedRequest, facts: dict[str, Any], command: str) -> dict[str, Any]:
    """The fields of a report that identify its study and describe how it was made."""
    return {
        "study": resolved.folder.path.name,
        "task": resolved.config.task,
        "model": resolved.config.model,
        "revision": resolved.config.model_digest,
        "created": facts["created"],
        "command": command,
        "versions": versions(),
        "recipe": resolved.config.recipe.to_json(),
        "question": resolved.request.question,
        "license": licence_of(resolved.pretrained),
    }
