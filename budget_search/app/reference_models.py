"""Another model set beside a study's answers: fine-tuned once, as the study's baseline was, and kept with the study.

As DistilBERT beside BERT-6 in *Poor Man's BERT* (Sajjad et al., 2020), section 5 and Table 4.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from budget_search.app.study_report import read_report, write_report
from budget_search.core.config import Recipe, SearchConfig
from budget_search.core.errors import BudgetSearchError
from budget_search.core.formatting import plural, points
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, TrialKey
from budget_search.report.entries import Reference
from budget_search.report.report import Report
from budget_search.storage.study_folder import StudyFolder, stored_config
from budget_search.storage.study_store import StudyStore

if TYPE_CHECKING:
    from budget_search.app.observer import Observer
    from budget_search.engine.device import Device
    from budget_search.engine.evaluation import Workplace
    from budget_search.engine.workers import Workers
    from budget_search.models.pretrained import Parent


@dataclass(frozen=True)
class Means:
    """By what a reference is measured: the options of a search that concern it."""

    workers: int | None = None
    scheduler: str | None = None
    trust_remote_code: bool = False
    wait: bool = False


def require_readable(parents: Sequence[Parent], means: Means, recipe: Recipe) -> None:
    """Raises UsageError and UnsupportedModelError for a model that could not be measured: before a search begins."""
    if parents:
        from budget_search.app.create_study import Reader

        for parent in parents:
            Reader.of(parent, trust_remote_code=means.trust_remote_code).require_usable(recipe)


def with_references(folder: StudyFolder, parents: Sequence[Parent], means: Means, observer: Observer) -> Report:
    """The study's report, written anew with these models in it, unless it has them already.

    What an interrupted call has measured is not measured again. Raises StudyError without a report or the study's
    texts, UsageError and UnsupportedModelError for a model that cannot be measured.
    """
    report = read_report(folder)
    if _missing(report, parents):
        with folder.locked(wait=means.wait):
            # Whoever held the study may have measured them meanwhile.
            report = read_report(folder)
            for parent in _missing(report, parents):
                found = _measured(folder, report, parent, means, observer)
                report = dataclasses.replace(report, references=(*report.references, found))
                write_report(folder, report)
    return report


def _missing(report: Report, parents: Sequence[Parent]) -> list[Parent]:
    there = {(each.model, each.revision) for each in report.references}
    return [parent for parent in parents if (parent.name, parent.digest) not in there]


def _measured(folder: StudyFolder, report: Report, parent: Parent, means: Means, observer: Observer) -> Reference:
    from budget_search.engine.dask_workers import workers_for
    from budget_search.engine.device import resolve_device
    from budget_search.engine.evaluation import Workplace

    stored = stored_config(folder)
    asked = SearchConfig.from_json(stored["config"])
    found_device = stored["facts"]["device"]
    device = resolve_device(str(found_device["name"]), str(found_device["precision"]))
    config = dataclasses.replace(asked, model=parent.name, model_digest=parent.digest)
    # Worker processes may stand elsewhere.
    own = StudyFolder(folder.reference(config.study_name).path.resolve())
    if not own.config.exists():
        observer.stage(f"reading the study's examples with {parent.name}")
        _make(own, folder, config, parent, device, means)
    own.sweep()
    workplace = Workplace(own, parent.folder, parent.name, config.recipe, device, means.trust_remote_code)
    workers = workers_for(workplace, asked.device, means.workers, means.scheduler)
    full = LayerSet.full(int(stored_config(own)["facts"]["layers_total"]))
    keys = [TrialKey(full, FULL_RUNG, seed) for seed in report.seeds]
    scores = _fine_tune(workers, keys, observer)
    found = _compared(folder, report, parent, workplace, keys, scores)
    # Nobody exports it.
    shutil.rmtree(own.path / "weights", ignore_errors=True)
    return found


def _make(
    own: StudyFolder, folder: StudyFolder, config: SearchConfig, parent: Parent, device: Device, means: Means
) -> None:
    """The study's own examples, read by the other model's tokenizer."""
    from budget_search.app.create_study import Reader, create_reference
    from budget_search.data.texts import load_texts
    from budget_search.data.tokenization import EncodedTask

    reader = Reader.of(parent, trust_remote_code=means.trust_remote_code)
    task = load_texts(folder.texts, EncodedTask.load(folder.examples))
    create_reference(own, config, reader, task, device)


def _fine_tune(workers: Workers, keys: Sequence[TrialKey], observer: Observer) -> list[float]:
    """The score of every seed, in points; each is recorded as it comes, and none that is there is run again."""
    own, name = workers.workplace.folder, workers.workplace.parent_name
    store = StudyStore.open(own.path.name, keys[0].layers.total, folder=own)
    scores = {trial.key: trial.score for trial in store.history if trial.score is not None}
    missing = [key for key in keys if key not in scores]
    if missing:
        observer.stage(f"reference: all {keys[0].layers.total} layers of {name}, {plural(len(missing), 'seed')}")
    for trial in workers.run(Job(key, "certification", keep_weights=True) for key in missing):
        store.append(trial)
        if trial.score is None:
            raise BudgetSearchError(
                f"the reference {name} could not be fine-tuned with seed {trial.key.seed} ({trial.error}); "
                "what is measured is kept: run the same command again, or leave --reference out"
            )
        observer.stage(f"  seed {trial.key.seed}: {points(trial.score)} on certification")
        scores[trial.key] = trial.score
    workers.score(keys)
    return [scores[key] for key in keys]


def _compared(
    folder: StudyFolder,
    report: Report,
    parent: Parent,
    workplace: Workplace,
    keys: Sequence[TrialKey],
    scores: Sequence[float],
) -> Reference:
    """The finished runs beside the study's baseline."""
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.cost import parameters
    from budget_search.engine.evaluation import loaded
    from budget_search.report.predictions import Evidence

    full, seeds = keys[0].layers, tuple(key.seed for key in keys)
    task = EncodedTask.load(folder.examples)
    baseline = Evidence(folder, task, report.layers_total, seeds)
    evidence = Evidence(workplace.folder, loaded(workplace).task, full.total, seeds)
    confidence = float(report.question["confidence"])
    on_certification = baseline.compare_reference(evidence, "certification", confidence)
    size = parameters(loaded(workplace).parent)
    return Reference(
        model=parent.name,
        revision=parent.digest,
        layers_total=full.total,
        score=statistics.fmean(scores),
        std=statistics.stdev(scores) if len(scores) > 1 else None,
        seeds=len(scores),
        metrics=evidence.means(full),
        degradation=on_certification.degradation,
        degradation_upper=on_certification.upper,
        confidence=confidence,
        held_out_score=statistics.fmean(evidence.metrics(full, "held_out")[task.metric]),
        held_out_degradation=baseline.compare_reference(evidence, "held_out", confidence).degradation,
        parameters=size,
        parameters_saved=1 - size / report.baseline.parameters,
    )
