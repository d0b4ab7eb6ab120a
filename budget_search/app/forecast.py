"""Forecast a search: time a few steps on this device, and simulate the search on generated models.

No files are left: a study that does not exist yet is created in a temporary folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budget_search.app.create_study import create
from budget_search.app.resolve import ResolvedRequest, known_report
from budget_search.app.search_settings import (
    evaluation_context,
    search_settings,
    study_device,
    with_measured_limits,
)
from budget_search.app.shared_baseline import shared_runs
from budget_search.core.config import Recipe
from budget_search.core.dropping import training_depth
from budget_search.core.trial import Trial
from budget_search.data.tokenization import EncodedTask
from budget_search.engine.device import Device, cores
from budget_search.engine.measurements.evaluation_cost import evaluation_costs
from budget_search.engine.measurements.speed import mean_speed
from budget_search.engine.parallel.forked_processes import forked_processes
from budget_search.engine.parallel.workers import Workers
from budget_search.layer_search.confirmation import Confirmations
from budget_search.layer_search.settings import SearchObserver, SearchSettings
from budget_search.layer_search.verdict import resolution
from budget_search.report.entries import Resolution
from budget_search.simulation.evaluation_costs import EvaluationCosts, EvaluationTime, RemainingWork
from budget_search.simulation.simulated_search import SimulatedSearch, simulate_searches
from budget_search.storage.database import LockWait
from budget_search.storage.study_folder import StudyFolder, stored_config
from budget_search.storage.study_store import recorded_trials

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value of the simulated searches, and their median."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        return cls(min(values), statistics.median(values), max(values))


@dataclass(frozen=True)
class Known:
    """The evaluations that the study already holds and will reuse; ``answered`` if nothing is left to run."""

    evaluations: int
    equivalents: float
    answered: bool


@dataclass(frozen=True)
class Forecast:
    """What ``budget-search plan`` prints. Ranges cover what is still to run.

    Equivalents are full fine-tunes of the full model.
    """

    schema_version: int
    study: str
    task: str
    model: str
    layers_total: int
    device: Mapping[str, Any]
    workers: int
    recipe: Mapping[str, Any]
    question: Mapping[str, Any]
    deltas: tuple[float, ...]
    examples: Mapping[str, int]
    seconds_per_evaluation: tuple[EvaluationTime, ...]
    evaluations: Range
    equivalents: Range
    training_equivalents: Range
    hours: Range
    disk_bytes: int
    disk_free_bytes: int
    known: Known
    resolution: Resolution
    rehearsals: int


def forecast(resolved: ResolvedRequest, observer: SearchObserver) -> Forecast:
    """Time a few steps and simulate the search. Raises whatever a search raises before its first evaluation."""
    with forked_processes(resolved.request.workers or cores()) as processes:
        device = study_device(resolved)
        with _study_or_draft(resolved, device, observer) as folder:
            study = _probe(resolved, folder, device, processes, observer)
            observer.stage("simulating the search on generated models")
            rehearsals = []
            if not study.answered:
                rehearsals = simulate_searches(study.settings, study.remaining.seconds, run=processes.map)
            return _summary(study, rehearsals)


@contextlib.contextmanager
def _study_or_draft(resolved: ResolvedRequest, device: Device, observer: SearchObserver) -> Iterator[StudyFolder]:
    """The study's folder; where there is none yet, a temporary one."""
    if resolved.folder.config.exists():
        yield resolved.folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        draft = StudyFolder(Path(temporary) / resolved.folder.path.name)
        create(dataclasses.replace(resolved, folder=draft), device, observer)
        yield draft


@dataclass(frozen=True)
class ProbedStudy:
    """A study, the evaluations it already holds, and the cost of evaluations on this device."""

    resolved: ResolvedRequest
    folder: StudyFolder
    task: EncodedTask
    settings: SearchSettings
    workers: int
    history: tuple[Trial, ...]
    answered: bool
    costs: EvaluationCosts

    @property
    def remaining(self) -> RemainingWork:
        return RemainingWork.of(self.costs, self.history)


def _probe(
    resolved: ResolvedRequest, folder: StudyFolder, device: Device, processes: Executor, observer: SearchObserver
) -> ProbedStudy:
    """Time a few training and evaluation steps while all workers are busy."""
    request, facts = resolved.request, stored_config(folder)["facts"]
    task, context = EncodedTask.load(folder.examples), evaluation_context(resolved, folder, device)
    workers = Workers(context, request.workers, asked=resolved.config.device)
    limits = with_measured_limits(request.limits, facts, context)
    settings = search_settings(resolved, facts, task, limits, workers.count)
    history, answered = _history(resolved, folder, settings.total, observer), known_report(resolved) is not None
    where = ""
    if request.scheduler:
        where = " on this machine, not on the cluster; --workers is the number of evaluations there"
    observer.stage(f"timing a few steps with one layer and with all layers{where}")
    speed = mean_speed(workers.speeds(settings.total, processes))
    return ProbedStudy(
        resolved=resolved,
        folder=folder,
        task=task,
        settings=settings,
        workers=workers.count,
        history=tuple(history),
        answered=answered,
        costs=evaluation_costs(settings, speed, task, context),
    )


def _history(resolved: ResolvedRequest, draft: StudyFolder, total: int, observer: SearchObserver) -> list[Trial]:
    """The study's trials, and the runs of the full model that it will take over from other studies."""
    folder, request = resolved.folder, resolved.request
    shared = [run.trial for run in shared_runs(resolved, draft)]
    if not folder.config.exists():
        return shared
    wait = LockWait(60 * request.storage_timeout, observer.stage)
    own = recorded_trials(folder.path.name, total, folder=folder, storage=request.storage, wait=wait)
    keys = {trial.key for trial in own}
    return [*own, *(trial for trial in shared if trial.key not in keys)]


def _summary(study: ProbedStudy, rehearsals: Sequence[SimulatedSearch]) -> Forecast:
    """The ranges over the simulated searches, with facts about the study."""
    resolved, settings, costs = study.resolved, study.settings, study.costs
    remaining = study.remaining
    jobs = [[job for job in each.jobs if not remaining.is_known(job)] for each in rehearsals] or [[]]
    done = sum(_equivalents(trial, resolved.config.recipe) for trial in study.history)
    return Forecast(
        schema_version=SCHEMA_VERSION,
        study=resolved.folder.path.name,
        task=resolved.config.task,
        model=resolved.config.model,
        layers_total=settings.total,
        device=stored_config(study.folder)["facts"]["device"],
        workers=study.workers,
        recipe=resolved.config.recipe.to_json(),
        question=resolved.request.question,
        deltas=resolved.request.deltas,
        examples={name: split.examples for name, split in study.task.splits.items()},
        seconds_per_evaluation=tuple(costs.table(settings)),
        evaluations=Range.of([len(each) for each in jobs]),
        equivalents=Range.of([sum(map(costs.equivalents, each)) for each in jobs]),
        training_equivalents=Range.of([sum(map(costs.training_equivalents, each)) for each in jobs]),
        hours=Range.of([_hours(study, each) for each in rehearsals] or [0.0]),
        disk_bytes=max(round(sum(map(costs.disk_bytes, each))) for each in jobs) + _draft_bytes(study),
        disk_free_bytes=shutil.disk_usage(_existing_parent(resolved.folder.path)).free,
        known=Known(len(study.history), done, study.answered),
        resolution=_resolution(study),
        rehearsals=len(rehearsals),
    )


def _hours(study: ProbedStudy, rehearsal: SimulatedSearch) -> float:
    """Hours of a whole search: decisions, evaluations, measuring the answers; at most ``--max-hours``.

    The seconds in which worker processes start are not counted.
    """
    finishing = study.costs.finishing_seconds(rehearsal.answers, len(study.settings.seeds), study.workers)
    hours = (rehearsal.deciding_seconds + rehearsal.seconds + finishing) / 3600
    limit = study.resolved.request.max_hours
    return hours if limit is None else min(hours, limit)


def _resolution(study: ProbedStudy) -> Resolution:
    """The smallest certifiable delta, given the scores that the study already holds."""
    settings = study.settings
    confirmations = Confirmations(study.history, settings.total, settings.seeds)
    scores = [
        list(confirmations.scores(layers).values()) for layers in (confirmations.full, *confirmations.uncollapsed)
    ]
    expected = resolution(
        study.task.splits["certification"].examples,
        len(settings.seeds),
        scores,
        confidence=settings.confidence,
        further=settings.certify,
        weight=study.task.example_weight("certification"),
    )
    smallest = expected.smallest_certifiable_delta
    return Resolution(None if smallest is None else smallest / 100, expected.explanation)


def _equivalents(trial: Trial, recipe: Recipe) -> float:
    return trial.rung * training_depth(recipe, trial.layers) / trial.layers.total


def _draft_bytes(study: ProbedStudy) -> int:
    """The size of a new study without weights; 0 for a study whose files are on the disk already."""
    if study.folder.path == study.resolved.folder.path:
        return 0
    return sum(path.stat().st_size for path in study.folder.path.rglob("*") if path.is_file())


def _existing_parent(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())
