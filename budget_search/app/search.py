"""From a request to a report: open the study, search, measure, tell. The only place where the parts meet."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from budget_search.app.earlier_answers import earlier_report, finished_report, kept_references, require_same_config
from budget_search.app.reference_models import Means, require_readable, with_references
from budget_search.app.resolve import Found
from budget_search.app.search_settings import plan_for
from budget_search.app.study_report import reduced, write_report
from budget_search.app.warm_start import whether_it_helped
from budget_search.core.config import in_points
from budget_search.core.errors import StudyError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, TrialKey
from budget_search.core.versions import versions
from budget_search.models.pretrained import licence_of
from budget_search.report.report import Report
from budget_search.report.sentences import answer_sentence
from budget_search.storage.study_folder import StudyFolder, stored_config
from budget_search.storage.study_store import StudyStore, require_storage

if TYPE_CHECKING:
    from budget_search.app.observer import Observer
    from budget_search.core.trial import Job, Trial
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.device import Device
    from budget_search.engine.evaluation import Workplace
    from budget_search.layer_search.settings import Plan
    from budget_search.layer_search.verdict import Judgement


def answer(found: Found, observer: Observer, command: str = "") -> Report:
    """The report for a request: at once where the study has answered it already, else after a search."""
    report = finished_report(found) or run(found, observer, command)
    if found.references:
        report = with_references(found.folder, found.references, _means(found), observer)
    return dataclasses.replace(reduced(report, found.request.deltas), folder=found.folder.path)


def run(found: Found, observer: Observer, command: str = "") -> Report:
    """Search, or go on with an interrupted search, and write the report.

    Raises BudgetSearchError; whatever was evaluated by then is kept.
    """
    began = time.monotonic()
    if found.request.storage:
        require_storage(found.request.storage)
    require_readable(found.references, _means(found), found.config.recipe)
    from budget_search.app.create_study import create
    from budget_search.engine.device import resolve_device

    if not found.folder.config.exists():
        create(found, resolve_device(found.config.device, found.config.precision), observer)
    require_same_config(found)
    device = resolve_device(*_asked_device(found))
    if found.request.wait:
        observer.stage("waiting until no other command works on the study")
    with found.folder.locked(wait=found.request.wait):
        found.folder.sweep()
        # Whoever held the study may have answered the question meanwhile.
        return finished_report(found) or _search(found, device, observer, command, began)


def _means(found: Found) -> Means:
    request = found.request
    return Means(request.workers, request.scheduler, request.trust_remote_code, request.wait)


def _asked_device(found: Found) -> tuple[str, str]:
    """What "auto" came to when the study was made, so that its trials stay comparable."""
    device = stored_config(found.folder)["facts"]["device"]
    return str(device["name"]), str(device["precision"])


def _search(found: Found, device: Device, observer: Observer, command: str, began: float) -> Report:
    from budget_search.app.measure_answers import measure_answers, prune_weights
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.dask_workers import workers_for
    from budget_search.engine.evaluation import Workplace
    from budget_search.layer_search.loop import Search
    from budget_search.layer_search.state import Findings
    from budget_search.report.builder import Summary, build_report
    from budget_search.report.predictions import Evidence

    request, facts = found.request, stored_config(found.folder)["facts"]
    task = EncodedTask.load(found.folder.examples)
    store = _opened(found, facts)
    # Worker processes may stand elsewhere.
    folder = StudyFolder(found.folder.path.resolve())
    workplace = Workplace(
        folder, found.parent.folder, found.parent.name, found.config.recipe, device, request.trust_remote_code
    )
    workers = workers_for(workplace, found.config.device, request.workers, request.scheduler)
    plan = _plan(found, task, store, workplace, workers.count, began)
    workers.workplace = dataclasses.replace(workplace, teacher=plan.teacher)
    evidence = Evidence(found.folder, task, plan.total, plan.seeds)
    earlier, before = float(store.facts.get("wall_seconds", 0.0)), earlier_report(found)
    references = kept_references(found)

    def judge(layers: LayerSet, confidence: float) -> Judgement:
        return evidence.compare(layers, "certification", confidence, among=findings.confirmations.steady)

    def run_jobs(jobs: Iterable[Job | None]) -> Iterator[Trial]:
        for trial in workers.run(jobs):
            yield trial
            store.note(wall_seconds=earlier + time.monotonic() - began)

    findings = Findings(plan, store, judge)
    search = Search(findings, run_jobs, observer)
    observer.planned(plan, found.config, task, device, workers.count, store.history)
    search.run()
    # The report keeps the answers that were given before.
    asked_before = [result.delta for result in before.results] if before else []
    answers = findings.answers(in_points(delta) for delta in sorted({*request.deltas, *asked_before}))
    heritage_note = [whether_it_helped(findings, found.heritage.study)] if found.heritage else []
    observer.stage("scoring the answers on held_out and timing them")
    measured = measure_answers(workers, findings, answers)
    summary = Summary(findings, search.fine_tuned, evidence, measured, facts["layer_parameters"])
    report = build_report(
        summary=summary,
        task=task,
        answers=answers,
        identity={**_identity(found, facts, command), "similarities": store.facts.get("similarities")},
        wall_seconds=earlier + time.monotonic() - began,
        notes=[*search.notes(), *heritage_note],
        references=references,
    )
    write_report(found.folder, report)
    store.note(answer=[answer_sentence(report, result) for result in report.results])
    prune_weights(found.folder, findings, answers.values())
    return report


def _opened(found: Found, facts: dict[str, Any]) -> StudyStore:
    """The study's trials. Raises StudyError where the storage has others by that name."""
    store = StudyStore.open(
        found.folder.path.name, facts["layers_total"], folder=found.folder, storage=found.request.storage
    )
    if store.facts.get("fingerprint", found.config.fingerprint) != found.config.fingerprint:
        raise StudyError(
            f"the storage holds a study {found.folder.path.name} of another task, model or recipe; "
            "choose another --study name"
        )
    store.note(fingerprint=found.config.fingerprint)
    return store


def _plan(found: Found, task: EncodedTask, store: StudyStore, workplace: Workplace, width: int, began: float) -> Plan:
    """The request's plan, with what must be measured of the model first and what the study has noted."""
    from budget_search.app.measured_limits import with_measures

    request, facts = found.request, stored_config(found.folder)["facts"]
    plan = plan_for(found, facts, task, with_measures(request.limits, facts, workplace), width)
    if plan.budget.max_hours is not None:
        # Reading the task and the model counts as well.
        left = max(0.0, plan.budget.max_hours - (time.monotonic() - began) / 3600)
        plan = dataclasses.replace(plan, budget=dataclasses.replace(plan.budget, max_hours=left))
    if request.strategy == "contribution" and not request.layers:
        plan = dataclasses.replace(plan, similarities=_similarities(store, workplace))
    if found.config.recipe.distil:
        plan = dataclasses.replace(plan, teacher_seed=_teacher_seed(store, plan))
    return plan


def _identity(found: Found, facts: dict[str, Any], command: str) -> dict[str, Any]:
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
        "license": licence_of(found.parent),
    }


def _teacher_seed(store: StudyStore, plan: Plan) -> int:
    """One for the whole study, whatever seeds are asked for later: the first that was asked for and is there."""
    noted: int | None = store.facts.get("teacher_seed")
    trial = None if noted is None else store.find(TrialKey(LayerSet.full(plan.total), FULL_RUNG, noted))
    if noted is not None and trial is not None and trial.state != "failed":
        return noted
    # Nothing has learnt from it yet.
    store.note(teacher_seed=plan.seeds[0])
    return plan.seeds[0]


def _similarities(store: StudyStore, workplace: Workplace) -> tuple[float, ...]:
    from budget_search.engine.layer_similarity import layer_similarities

    known: Sequence[float] | None = store.facts.get("similarities")
    if known is None:
        known = layer_similarities(workplace)
        store.note(similarities=list(known))
    return tuple(known)
