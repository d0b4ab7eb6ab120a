"""Reference models: fine-tune other models like a study's baseline, compare them with it, and report the result.

As DistilBERT beside BERT-6 in *Poor Man's BERT* (Sajjad et al., 2020), section 5 and Table 4.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from budget_search.app.study_report import read_report, require_weights_kept, write_report
from budget_search.core.config import SearchConfig
from budget_search.core.errors import BudgetSearchError
from budget_search.core.formatting import plural, points
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, TrialKey
from budget_search.data.kinds import kind_of, require_supported
from budget_search.layer_search.learning import shortfall
from budget_search.report.entries import Reference
from budget_search.report.report import Report
from budget_search.storage.database import LockWait
from budget_search.storage.study_folder import StudyFolder, stored_config
from budget_search.storage.study_store import StudyStore

if TYPE_CHECKING:
    from budget_search.engine.device import Device
    from budget_search.engine.evaluation import EvaluationContext
    from budget_search.engine.parallel.workers import Workers
    from budget_search.layer_search.settings import SearchObserver
from budget_search.models.pretrained import PretrainedSource


@dataclass(frozen=True)
class ExecutionOptions:
    """The options of a search that say where and how a reference model is fine-tuned."""

    workers: int | None = None
    scheduler: str | None = None
    trust_remote_code: bool = False
    wait: bool = False
    storage_timeout: float = 10.0


def require_readable(sources: Sequence[PretrainedSource], options: ExecutionOptions, config: SearchConfig) -> None:
    """Raises UsageError and UnsupportedModelError, before a search, for a reference model that cannot be measured."""
    if sources:
        from budget_search.app.create_study import ModelReader

        for pretrained in sources:
            reader = ModelReader.of(pretrained, kind_of(config.metric), trust_remote_code=options.trust_remote_code)
            reader.require_usable(config.recipe)


def with_references(
    folder: StudyFolder, sources: Sequence[PretrainedSource], options: ExecutionOptions, observer: SearchObserver
) -> Report:
    """The study's report with these models; missing ones are fine-tuned and added to ``report.json``.

    Evaluations of an interrupted call are reused. Raises StudyError if the study has no report or no texts,
    UsageError and UnsupportedModelError for a model that cannot be measured.
    """
    report = read_report(folder)
    if _missing(report, sources):
        require_weights_kept(report)
        require_supported(report.metric, "--reference")
        with folder.locked(wait=options.wait):
            # The command that held the lock may have measured them meanwhile.
            report = read_report(folder)
            for pretrained in _missing(report, sources):
                reference, notes = _measure(folder, report, pretrained, options, observer)
                references = (*report.references, reference)
                report = dataclasses.replace(report, references=references, notes=(*report.notes, *notes))
                write_report(folder, report)
    return report


def _missing(report: Report, sources: Sequence[PretrainedSource]) -> list[PretrainedSource]:
    known = {(each.model, each.revision) for each in report.references}
    return [pretrained for pretrained in sources if (pretrained.name, pretrained.digest) not in known]


def _measure(
    folder: StudyFolder,
    report: Report,
    pretrained: PretrainedSource,
    options: ExecutionOptions,
    observer: SearchObserver,
) -> tuple[Reference, list[str]]:
    """The comparison with the baseline, and notes on it for the report."""
    from budget_search.engine.device import resolve_device
    from budget_search.engine.evaluation import EvaluationContext
    from budget_search.engine.parallel.dask_workers import workers_for

    stored = stored_config(folder)
    study_config, study_device = SearchConfig.from_json(stored["config"]), stored["facts"]["device"]
    device = resolve_device(str(study_device["name"]), str(study_device["precision"]))
    config = dataclasses.replace(study_config, model=pretrained.name, model_digest=pretrained.digest)
    # Worker processes may have another working directory.
    own = StudyFolder(folder.reference(config.study_name).path.resolve())
    if not own.config.exists():
        observer.stage(f"reading the study's examples with {pretrained.name}")
        _create(own, folder, config, pretrained, device, options)
    own.remove_temporary_files()
    context = EvaluationContext(
        own, pretrained.folder, pretrained.name, config.recipe, device, options.trust_remote_code
    )
    workers = workers_for(context, study_config.device, options.workers, options.scheduler)
    full = LayerSet.full(int(stored_config(own)["facts"]["layers_total"]))
    keys = [TrialKey(full, FULL_RUNG, seed) for seed in report.seeds]
    scores = _fine_tune(workers, keys, LockWait(60 * options.storage_timeout, observer.stage), observer)
    compared = _compare(folder, report, pretrained, context, keys, scores)
    # A reference model is never exported.
    shutil.rmtree(own.path / "weights", ignore_errors=True)
    return compared


def _create(
    own: StudyFolder,
    folder: StudyFolder,
    config: SearchConfig,
    pretrained: PretrainedSource,
    device: Device,
    options: ExecutionOptions,
) -> None:
    """Create the folder: the study's own examples, encoded by the reference model's tokenizer."""
    from budget_search.app.create_study import ModelReader, create_reference
    from budget_search.data.texts import load_texts
    from budget_search.data.tokenization import EncodedTask

    reader = ModelReader.of(pretrained, kind_of(config.metric), trust_remote_code=options.trust_remote_code)
    task = load_texts(folder.texts, EncodedTask.load(folder.examples))
    create_reference(own, config, reader, task, device)


def _fine_tune(workers: Workers, keys: Sequence[TrialKey], wait: LockWait, observer: SearchObserver) -> list[float]:
    """The score of every seed, in points. Each is recorded when it is finished; recorded ones are reused."""
    own, name = workers.context.folder, workers.context.pretrained_name
    store = StudyStore.open(own.path.name, keys[0].layers.total, folder=own, wait=wait)
    store.record_all()
    scores = {trial.key: trial.score for trial in store.history if trial.score is not None}
    missing = [key for key in keys if key not in scores]
    if missing:
        observer.stage(f"reference: all {keys[0].layers.total} layers of {name}, {plural(len(missing), 'seed')}")
    for trial in workers.run(Job(key, "certification", keep_weights=True) for key in missing):
        store.append(trial)
        if trial.score is None:
            raise BudgetSearchError(
                f"the reference {name} could not be fine-tuned with seed {trial.key.seed} ({trial.error}); "
                "finished evaluations are kept: run the same command again, or leave --reference out"
            )
        observer.stage(f"  seed {trial.key.seed}: {points(trial.score)} on certification")
        scores[trial.key] = trial.score
    workers.score(keys)
    return [scores[key] for key in keys]


def _compare(
    folder: StudyFolder,
    report: Report,
    pretrained: PretrainedSource,
    context: EvaluationContext,
    keys: Sequence[TrialKey],
    scores: Sequence[float],
) -> tuple[Reference, list[str]]:
    """Compare the finished runs with the study's baseline; a note says so if the model has not learnt the task."""
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.evaluation import loaded
    from budget_search.engine.measurements.cost import parameters
    from budget_search.report.predictions import PairedOutputs

    full, seeds = keys[0].layers, tuple(key.seed for key in keys)
    task = EncodedTask.load(folder.examples)
    baseline = PairedOutputs(folder, task, report.layers_total, seeds)
    paired = PairedOutputs(context.folder, loaded(context).task, full.total, seeds)
    confidence = float(report.question["confidence"])
    on_certification = baseline.compare_reference(paired, "certification", confidence)
    size = parameters(loaded(context).pretrained)
    gain = paired.gain("certification")
    short = shortfall(gain, gain.failed, seeds)
    notes = [f"The reference {pretrained.name} has not learnt the task ({short}), so the comparison is not meaningful."]
    full_size = report.baseline.parameters
    assert full_size is not None, "a study with models knows their sizes"
    reference = Reference(
        model=pretrained.name,
        revision=pretrained.digest,
        layers_total=full.total,
        score=statistics.fmean(scores),
        std=statistics.stdev(scores) if len(scores) > 1 else None,
        seeds=len(scores),
        metrics=paired.means(full),
        degradation=on_certification.degradation,
        degradation_upper=on_certification.upper,
        confidence=confidence,
        held_out_score=statistics.fmean(paired.held_out_scores(full)),
        held_out_degradation=baseline.compare_reference(paired, "held_out", confidence).degradation,
        parameters=size,
        parameters_saved=1 - size / full_size,
    )
    return reference, notes if short else []
