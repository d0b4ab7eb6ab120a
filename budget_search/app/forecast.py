"""What a search would run and what it would cost, before it runs: a timed probe and rehearsed searches.

Nothing of it stays: a study that is not there yet is made in a temporary folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budget_search.app.create_study import create
from budget_search.app.earlier_answers import finished_report, require_same_config
from budget_search.app.measured_limits import with_measured_limits
from budget_search.app.observer import Observer
from budget_search.app.resolve import ResolvedRequest
from budget_search.app.search_settings import search_settings
from budget_search.core.config import Recipe
from budget_search.core.dropping import training_depth
from budget_search.core.layers import LayerSet
from budget_search.core.trial import Job, Trial, TrialKey
from budget_search.data.tokenization import EncodedTask
from budget_search.engine.device import default_workers, resolve_device
from budget_search.engine.evaluation import EvaluationContext
from budget_search.engine.evaluation_cost import EvaluationCosts, EvaluationTime
from budget_search.engine.speed import mean_speed
from budget_search.engine.workers import Workers
from budget_search.layer_search.confirmation import Confirmations
from budget_search.layer_search.settings import SearchSettings
from budget_search.layer_search.verdict import resolution
from budget_search.report.entries import Resolution
from budget_search.simulation.rehearsal import rehearse
from budget_search.storage.database import LockWait
from budget_search.storage.study_folder import StudyFolder, stored_config
from budget_search.storage.study_store import recorded_trials

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Range:
    """What 9 of 10 rehearsed searches lie between, and their median."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        return cls(min(values), statistics.median(values), max(values))


@dataclass(frozen=True)
class Known:
    """What the study holds already, which is not run again; ``answered``: this very question, so that nothing is."""

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


def forecast(found: ResolvedRequest, observer: Observer) -> Forecast:
    """Probe and rehearse. Raises UsageError and whatever else a search would raise before it begins."""
    device = _device_of(found)
    with _study_or_draft(found, device, observer) as folder:
        stored = stored_config(folder)["facts"]
        task, request = EncodedTask.load(folder.examples), found.request
        context = EvaluationContext(
            folder,
            found.pretrained.folder,
            found.pretrained.name,
            found.config.recipe,
            device,
            request.trust_remote_code,
        )
        workers = Workers(context, request.workers or default_workers(device, found.config.device))
        settings = search_settings(
            found, stored, task, with_measured_limits(request.limits, stored, context), workers.count
        )
        history = _history(found, settings.total, observer)
        answered = finished_report(found) is not None
        where = (
            " here, not on the cluster: --workers says how many evaluations it will run" if request.scheduler else ""
        )
        observer.stage(f"timing a few steps at a few depths{where}")
        began = time.monotonic()
        speed = mean_speed(workers.speeds(settings.total))
        starting_seconds = max(0.0, time.monotonic() - began - speed.spent)
        costs = EvaluationCosts.of(settings, speed, task, context)
        observer.stage("rehearsing the search on made-up models")
        ahead = Ahead.of(costs, history)
        rehearsals = [] if answered else rehearse(settings, default_workers(device, found.config.device), ahead.seconds)
        seconds = [
            starting_seconds
            + each.deciding_seconds
            + each.seconds
            + costs.finishing_seconds(each.answers, len(settings.seeds), workers.count)
            for each in rehearsals
        ]
        jobs = [[job for job in each.jobs if not ahead.is_known(job)] for each in rehearsals] or [[]]
        hours = [each / 3600 for each in seconds] or [0.0]
        limit = request.max_hours
        certification = task.splits["certification"].examples
        known = resolution(
            certification, len(settings.seeds), _scores(history, settings), confidence=settings.confidence
        )
        smallest = known.smallest_certifiable_delta
        return Forecast(
            schema_version=SCHEMA_VERSION,
            study=found.folder.path.name,
            task=found.config.task,
            model=found.config.model,
            layers_total=settings.total,
            device=stored["device"],
            workers=workers.count,
            recipe=found.config.recipe.to_json(),
            question=request.question,
            deltas=request.deltas,
            examples={name: split.examples for name, split in task.splits.items()},
            seconds_per_evaluation=tuple(costs.table(settings)),
            evaluations=Range.of([len(each) for each in jobs]),
            equivalents=Range.of([sum(map(costs.equivalents, each)) for each in jobs]),
            training_equivalents=Range.of([sum(map(costs.training_equivalents, each)) for each in jobs]),
            hours=Range.of([each if limit is None else min(each, limit) for each in hours]),
            disk_bytes=max(round(sum(map(costs.disk_bytes, each))) for each in jobs) + _size(folder, found),
            disk_free_bytes=shutil.disk_usage(_there(found.folder.path)).free,
            known=Known(len(history), sum(_equivalents_of(trial, found.config.recipe) for trial in history), answered),
            resolution=Resolution(None if smallest is None else smallest / 100, known.explanation),
            rehearsals=len(rehearsals),
        )


def _device_of(found: ResolvedRequest) -> Any:
    if found.folder.config.exists():
        require_same_config(found)
        device = stored_config(found.folder)["facts"]["device"]
        return resolve_device(str(device["name"]), str(device["precision"]))
    return resolve_device(found.config.device, found.config.precision)


@contextlib.contextmanager
def _study_or_draft(found: ResolvedRequest, device: Any, observer: Observer) -> Iterator[StudyFolder]:
    """The study's folder, or one like it that is gone afterwards."""
    if found.folder.config.exists():
        yield found.folder
        return
    with tempfile.TemporaryDirectory() as place:
        draft = StudyFolder(Path(place) / found.folder.path.name)
        create(dataclasses.replace(found, folder=draft), device, observer)
        yield draft


def _history(found: ResolvedRequest, total: int, observer: Observer) -> list[Trial]:
    """What the study holds."""
    if not found.folder.config.exists():
        return []
    storage, wait = found.request.storage, LockWait(60 * found.request.storage_timeout, observer.stage)
    return recorded_trials(found.folder.path.name, total, folder=found.folder, storage=storage, wait=wait)


@dataclass(frozen=True)
class Ahead:
    """What evaluations still take: those that the study holds already take nothing.

    ``known``: layer set, rung and seed of each, the full model without its depth: a rehearsal may have another.
    """

    costs: EvaluationCosts
    known: frozenset[tuple[LayerSet | None, float, int]]

    @classmethod
    def of(cls, costs: EvaluationCosts, history: Sequence[Trial]) -> Ahead:
        return cls(costs, frozenset(map(_depthless, (trial.key for trial in history))))

    def is_known(self, job: Job) -> bool:
        return _depthless(job.key) in self.known

    def seconds(self, job: Job) -> float:
        return 0.0 if self.is_known(job) else self.costs.seconds(job)


def _depthless(key: TrialKey) -> tuple[LayerSet | None, float, int]:
    return (None if key.layers.is_full else key.layers), key.rung, key.seed


def _scores(history: Sequence[Trial], settings: SearchSettings) -> list[list[float]]:
    """Of the full model and of every set that is confirmed and never collapsed, one score per seed, in points."""
    confirmations = Confirmations(history, settings.total, settings.seeds)
    return [list(confirmations.scores(layers).values()) for layers in (confirmations.full, *confirmations.steady)]


def _equivalents_of(trial: Trial, recipe: Recipe) -> float:
    return trial.rung * training_depth(recipe, trial.layers) / trial.layers.total


def _size(folder: StudyFolder, found: ResolvedRequest) -> int:
    """Bytes of what a study holds beside weights, where it is not on the disk yet."""
    if folder.path == found.folder.path:
        return 0
    return sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file())


def _there(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())
