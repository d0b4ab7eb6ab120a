"""A search with a user's objective instead of the built-in fine-tune; everything else is the same."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from budget_search.app.request import Request, request_from_python
from budget_search.app.study_report import deltas_to_report, finished_report, select_deltas, write_report
from budget_search.app.study_run import Clock, open_store, run_search
from budget_search.core.config import fingerprint_of, in_points
from budget_search.core.errors import StudyError, UsageError
from budget_search.core.formatting import timestamp
from budget_search.core.layers import LayerSet
from budget_search.core.objective import Measure, Measured, Objective
from budget_search.core.trial import SearchBudget, Trial
from budget_search.core.versions import versions
from budget_search.layer_search.settings import Advice, SearchObserver, SearchSettings, screens_for
from budget_search.report.entries import SplitSummary
from budget_search.report.inference import InferencePoint, Interval, Quantiles
from budget_search.report.report import Report
from budget_search.report.sentences import answer_sentence
from budget_search.storage.files import write_json
from budget_search.storage.study_folder import StudyFolder, draft_of, require_writable, stored_config, study_path
from budget_search.storage.study_store import require_storage

if TYPE_CHECKING:
    from budget_search.layer_search.loop import Search
    from budget_search.report.builder import ModelMeasurements
    from budget_search.report.evidence import ObjectiveEvidence

# The options of a search that concern neither its data nor its fine-tunes.
OPTIONS = (
    *("deltas", "strategy", "sampler", "criterion", "confidence", "probability", "seeds", "base_seed", "certify"),
    *("max_trials", "max_hours", "max_layers", "keep_layers", "drop_layers"),
    *("workers", "wait", "studies_dir", "storage", "storage_timeout"),
)
ADVICE = Advice(
    not_trainable="fix the objective, or choose a training that converges",
    machine_failed="free memory or ask for fewer workers, then repeat the search",
    not_learnt="train longer, at another learning rate, or check the labels and constant_score",
    budget="max_trials, max_hours",
    seeds="seeds={seeds}",
    confirm="",
)
FEWEST_LAYERS = 2


class Observer(SearchObserver, Protocol):
    """A search's observer that is also told the settings, before the first evaluation."""

    def begin(self, settings: SearchSettings, workers: int, known: list[Trial]) -> None: ...


@dataclass(frozen=True)
class ObjectiveSearch:
    """An objective and its settings. ``request`` holds the options that every search has; its task and model are the
    names shown in the report.

    ``screen_fraction`` is the fraction of the whole training that a screen gets. ``constant_score`` is the score in
    points of the best constant prediction: a full model that is no better ends the search. ``version`` names
    the version of the objective: a study continues only with the version that it was begun with.
    Raises UsageError.
    """

    objective: Objective
    layers: int
    request: Request
    metric: str = "score"
    screen_fraction: float = 0.25
    measure: Measure | None = None
    constant_score: float | None = None
    version: str = ""

    def __post_init__(self) -> None:
        if not callable(self.objective):
            raise UsageError(f"the objective must be a function, received {self.objective!r}")
        if not isinstance(self.layers, int) or self.layers < FEWEST_LAYERS:
            raise UsageError(
                f"layers={self.layers!r} must be the number of layers of the full model, at least {FEWEST_LAYERS}"
            )
        if not 0 < self.screen_fraction < 1:
            raise UsageError(f"screen_fraction={self.screen_fraction} must be above 0 and below 1, such as 0.25")
        self.request.limits.require_possible(self.layers, ())

    @property
    def folder(self) -> StudyFolder:
        return StudyFolder(study_path(self.request.studies_dir, self.request.study or ""))

    @property
    def config(self) -> dict[str, Any]:
        """The settings that all trials of the study share."""
        request = self.request
        return {
            "task": request.task,
            "model": request.model,
            "metric": self.metric,
            "recipe": {"name": "objective"},
            "layers": self.layers,
            "version": self.version,
        }

    def settings(self, workers: int, spent_seconds: float) -> SearchSettings:
        request = self.request
        return SearchSettings(
            total=self.layers,
            deltas=tuple(map(in_points, request.deltas)),
            strategy=request.strategy,
            seeds=request.confirmation_seeds,
            screen_seed=request.screen_seed,
            screen_rung=self.screen_fraction,
            evaluations=screens_for(self.screen_fraction, self.layers),
            sampler=request.sampler,
            criterion=request.criterion,
            confidence=request.confidence,
            probability=request.probability,
            width=workers,
            limits=request.limits,
            budget=SearchBudget(request.max_trials, request.max_hours).after(spent_seconds),
            advice=ADVICE,
            certify=request.certify,
        )


def request_for(study: str, task: str, model: str, options: Mapping[str, Any]) -> Request:
    """The options as a request. Raises UsageError, also for an option that does not concern an objective."""
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise UsageError(f"minimize_layers does not know {' '.join(unknown)}; allowed: {' '.join(OPTIONS)}")
    return request_from_python({**options, "task": task, "model": model, "study": study})


def search_objective(search: ObjectiveSearch, observer: Observer) -> Report:
    """The report: read from the study if it has the answers already, else the result of a search.

    Raises BudgetSearchError; finished evaluations are kept, and the same call resumes the search.
    """
    began, folder, request = time.monotonic(), search.folder, search.request
    if request.storage:
        require_storage(request.storage)
    if not folder.config.exists():
        require_writable(folder)
        _create(search)
    with folder.locked(wait=request.wait):
        folder.remove_temporary_files()
        _require_same(search)
        known = finished_report(folder, request.question, request.deltas)
        report = known or _search(search, observer, began)
    return dataclasses.replace(select_deltas(report, request.deltas), folder=folder.path)


def _create(search: ObjectiveSearch) -> None:
    facts = {
        "layers_total": search.layers,
        "layer_parameters": [],
        "undroppable": [],
        "device": {},
        "created": timestamp(),
    }
    with draft_of(search.folder, wait=search.request.wait) as draft:
        write_json(draft.environment, {"versions": versions(), "python": platform.python_version(), **facts})
        write_json(draft.config, {"config": search.config, "facts": facts})


def _require_same(search: ObjectiveSearch) -> None:
    """Raises StudyError where the study was begun with something else."""
    stored = stored_config(search.folder)["config"]
    for name, value in search.config.items():
        if stored.get(name) != value:
            raise StudyError(
                f"the study {search.folder.path.name} was begun with {name} {stored.get(name)!r}, not {value!r}; "
                "choose another study name"
            )


def _search(search: ObjectiveSearch, observer: Observer, began: float) -> Report:
    from budget_search.engine.parallel.objective_workers import ObjectiveWorkers
    from budget_search.report.evidence import ObjectiveEvidence

    folder, request = search.folder, search.request
    store = open_store(folder, fingerprint_of(search.config), request, observer)
    clock = Clock.of(store, began)
    workers = ObjectiveWorkers.start(search.objective, folder, request.workers or 1)
    if workers.count < (request.workers or 1):
        observer.stage("the objective cannot be pickled, so evaluations run one at a time in this process")
    settings = search.settings(workers.count, clock.seconds)
    evidence = ObjectiveEvidence(folder, store, search.layers, settings.seeds, search.constant_score)
    observer.begin(settings, workers.count, store.history)
    found = run_search(settings, store, workers, evidence, observer, clock)
    report = _report(search, found, evidence, clock)
    write_report(folder, report)
    store.set_facts(answer=[answer_sentence(report, result) for result in report.results])
    return report


def _report(search: ObjectiveSearch, found: Search, evidence: ObjectiveEvidence, clock: Clock) -> Report:
    from budget_search.report.builder import ReportBuilder, build_report

    request = search.request
    deltas, withdrawn = deltas_to_report(search.folder, request.question, request.deltas, found.state.is_withdrawn)
    answers = found.state.answers(map(in_points, deltas))
    measured, measured_notes = _measured(search, answers.values())
    examples = evidence.examples("certification")
    splits = {"certification": SplitSummary(examples, constant_score=search.constant_score)} if examples > 1 else {}
    return build_report(
        builder=ReportBuilder(found.state, found.fine_tuned, evidence, measured, ()),
        answers=answers,
        identity={
            "study": search.folder.path.name,
            "task": request.task,
            "model": request.model,
            "metric": search.metric,
            "splits": splits,
            "revision": search.version or None,
            "created": stored_config(search.folder)["facts"]["created"],
            "command": f"budget_search.minimize_layers(..., layers={search.layers}, study={request.study!r})",
            "versions": versions(),
            "device": {},
            "recipe": {},
            "question": request.question,
        },
        wall_seconds=clock.seconds,
        notes=[*found.notes(), *withdrawn, *_notes(search, examples), *measured_notes],
    )


def _notes(search: ObjectiveSearch, examples: int) -> Iterable[str]:
    """Notes on what was not checked."""
    if examples == 1:
        yield (
            "The objective returned no results per example, so bounds and probabilities cover only the variance "
            "between seeds, not that between examples."
        )
    if search.constant_score is None:
        yield (
            "Not checked: whether the full model has learnt the task. This needs constant_score, the score of the best "
            "prediction that ignores the input."
        )
    yield "Answers were not checked on held-out examples: the objective scores only selection and certification."


def _measured(
    search: ObjectiveSearch, answers: Iterable[LayerSet]
) -> tuple[dict[LayerSet, ModelMeasurements], list[str]]:
    """Size and speed of the full model and the answers, as returned by ``measure``; a note if it fails."""
    from budget_search.report.builder import ModelMeasurements

    full = LayerSet.full(search.layers)
    sets = [full, *sorted({*answers} - {full})]
    known, notes = dict.fromkeys(sets, Measured()), list[str]()
    if search.measure:
        try:
            known = {layers: search.measure(layers) for layers in sets}
        except Exception as error:
            notes = [f"Sizes and speeds are missing because measure failed: {type(error).__name__}: {error}"]
    baseline = known[full]
    return {
        layers: ModelMeasurements(each.parameters, None, _inference(each, None if layers.is_full else baseline))
        for layers, each in known.items()
    }, notes


def _inference(measured: Measured, baseline: Measured | None) -> tuple[InferencePoint, ...]:
    """The latency, and the share of the baseline's that it saves; nothing where it is unknown."""
    ms = measured.latency_ms
    if ms is None:
        return ()
    saved = 1 - ms / baseline.latency_ms if baseline and baseline.latency_ms else None
    return (
        InferencePoint(
            batch=measured.batch,
            length=0,
            ms=Quantiles(ms, ms, ms),
            saved=None if saved is None else Interval(saved, None, None),
        ),
    )
