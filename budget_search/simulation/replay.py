"""Replay: strategies and searches on recorded tables of scores instead of fine-tunes, in milliseconds.

A table is a JSON file with ``layers``, ``metric``, ``complete_depths`` (the depths at which all layer sets were
measured) and ``records``, each ``{"kept": [0, 1], "rung": 1.0, "seed": 0, "score": 87.7}`` with optional further
measurements; ``prefix_third_score`` is the score of the same run after a third of its steps. A ``.npz`` file of the
same name may hold the models' predictions: ``selection_logits`` (records, examples, classes) and ``selection_labels``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from budget_search.core.errors import StudyError, UsageError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, Tolerance, Trial, TrialKey, TrialsByKey
from budget_search.data.metrics import measure
from budget_search.layer_search.strategies import propose
from budget_search.layer_search.strategies.problem import SearchProblem, smallest_holding

NAMED_FIELDS = ("kept", "rung", "seed", "score")
PREFIX, PREFIX_RUNG = "prefix_third_score", 1 / 3
UNRECORDED = "not recorded"
# Training tokens of a full fine-tune. Only ratios of tokens are used.
TOKENS = 6000
# Random differences below the rounding of scores, which break ties.
TIE = 1e-3


@dataclass(frozen=True)
class Outputs:
    """Predictions of all recorded full runs: ``logits`` (runs, examples, classes) and ``labels`` (examples,)."""

    keys: tuple[TrialKey, ...]
    logits: np.ndarray
    labels: np.ndarray

    def scores(self, metric: str, rows: np.ndarray) -> dict[TrialKey, float]:
        """Score of every run on these examples, in points; repeated examples count repeatedly."""
        labels = self.labels[rows]
        return {key: measure((metric,), self.logits[run, rows], labels)[metric] for run, key in enumerate(self.keys)}


@dataclass(frozen=True)
class Table:
    """The recorded trials of one model on one task, by key.

    ``trials`` are the records of the file, ``prefixes`` the scores of the same runs after a third of their steps.
    """

    name: str
    total: int
    metric: str
    complete_depths: frozenset[int]
    trials: Mapping[TrialKey, Trial]
    prefixes: Mapping[TrialKey, Trial] = field(default_factory=dict)
    outputs: Outputs | None = None

    @classmethod
    def load(cls, path: Path | str) -> Table:
        """Read a table. Raises UsageError for any other file."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            total = int(content["layers"])
            trials = [_read(record, total) for record in content["records"]]
            complete, metric = frozenset(map(int, content["complete_depths"])), str(content["metric"])
            outputs = _read_outputs(path.with_suffix(".npz"), tuple(trial.key for trial in trials))
        except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
            raise UsageError(f"cannot read {path.name} as a table of recorded scores: {error!r}") from error
        prefixes = [_prefix(trial) for trial in trials if PREFIX in trial.metrics]
        by_key, prefixes_by_key = ({trial.key: trial for trial in each} for each in (trials, prefixes))
        return cls(path.stem, total, metric, complete, by_key, prefixes_by_key, outputs)

    def layer_sets(self) -> list[LayerSet]:
        """The measured layer sets, sorted, without repeats."""
        return sorted({key.layers for key in self.trials})

    def seeds(self) -> list[int]:
        return sorted({key.seed for key in self.trials})

    def trial(self, key: TrialKey) -> Trial:
        """The recorded trial. Raises StudyError if there is none."""
        if key not in self.trials:
            raise StudyError(f"the table {self.name} holds no record of {key}")
        return self.trials[key]

    def run_jobs(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        """The recorded trials of these jobs, as a search expects them. Raises StudyError for a missing one."""
        for job in jobs:
            if job is not None:
                yield replace(self.trial(job.key), split=job.split)

    def mean_score(self, layers: LayerSet, rung: float = FULL_RUNG) -> float:
        """Mean score over the recorded seeds, in points. Raises StudyError if there is none."""
        keys = [TrialKey(layers, rung, seed) for seed in self.seeds()]
        scores = [self.trials[key].score for key in keys if key in self.trials]
        known = [score for score in scores if score is not None]
        if not known:
            raise StudyError(f"the table {self.name} holds no score of layers {layers} at rung {rung:.4g}")
        return sum(known) / len(known)

    def resampled(self, draw: np.random.Generator) -> Table:
        """The table with random tie-breaks and, if predictions are recorded, full runs scored on a bootstrap sample."""
        scores: dict[TrialKey, float] = {}
        if self.outputs is not None:
            examples = len(self.outputs.labels)
            scores = self.outputs.scores(self.metric, draw.integers(examples, size=examples))

        def resample(trials: Mapping[TrialKey, Trial]) -> dict[TrialKey, Trial]:
            ties = draw.uniform(0, TIE, len(trials)).tolist()
            return {
                key: trial if trial.score is None else replace(trial, score=scores.get(key, trial.score) + tie)
                for (key, trial), tie in zip(trials.items(), ties, strict=True)
            }

        return replace(self, trials=resample(self.trials), prefixes=resample(self.prefixes))


@dataclass
class InMemoryHistory:
    """The history of a study in memory. A trial with a known key replaces the earlier one."""

    trials: list[Trial] = field(default_factory=list)
    stored_facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_key = TrialsByKey(self.trials)

    @property
    def history(self) -> list[Trial]:
        return self._by_key.to_list()

    def find(self, key: TrialKey) -> Trial | None:
        return self._by_key.find(key)

    def append(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._by_key.add(trial)

    @property
    def facts(self) -> Mapping[str, Any]:
        return dict(self.stored_facts)

    def set_facts(self, **facts: Any) -> None:
        self.stored_facts.update(facts)


class NullObserver:
    """An observer that ignores all events."""

    def planned(self, *facts: Any) -> None: ...

    def stage(self, text: str) -> None: ...

    def started(self, job: Job) -> None: ...

    def finished(self, trial: Trial) -> None: ...

    def answered(self, delta: float, layers: LayerSet) -> None: ...


@dataclass(frozen=True)
class Replay:
    """The result of a strategy on a table: its trials in order, without the baseline, and its choice.

    ``unrecorded`` are the proposed sets that the table does not contain. They count as failed trials, so the result may
    underestimate the strategy.
    """

    trials: tuple[Trial, ...]
    choice: LayerSet
    unrecorded: tuple[LayerSet, ...]

    @property
    def layers(self) -> tuple[LayerSet, ...]:
        """The proposed sets, in order."""
        return tuple(trial.layers for trial in self.trials)


def play(
    strategy: str,
    table: Table,
    delta: float,
    *,
    baseline: float | None = None,
    rung: float = FULL_RUNG,
    record_seed: int = 0,
    known: Sequence[Trial] = (),
    **facts: Any,
) -> Replay:
    """Run a strategy on a table until it has finished, and choose the smallest set within delta (points).

    ``rung`` and ``record_seed`` select the records. ``baseline`` (points) replaces a full model that the table does not
    contain. ``known`` trials are in the history from the start, as in a resumed study. ``facts`` are further fields of
    the ``SearchProblem``. Raises StudyError without a baseline, and whatever the strategy raises.
    """
    full = TrialKey(LayerSet.full(table.total), rung, record_seed)
    start = Trial(full, "selection", "complete", baseline) if baseline is not None else table.trial(full)
    if start.score is None:
        raise StudyError(f"the table {table.name} holds no score of the full model")
    problem = SearchProblem(table.total, Tolerance(delta, {rung: start.score}), **facts)
    history = [start, *known]
    while proposed := propose(strategy, history, problem):
        keys = [TrialKey(layers, rung, record_seed) for layers in proposed]
        history += [table.trials.get(key) or _unrecorded(key) for key in keys]
    chosen = smallest_holding(history, problem)
    missing = tuple(trial.layers for trial in history if trial.error == UNRECORDED)
    return Replay(tuple(history[1:]), chosen.layers if chosen else full.layers, missing)


def play_at_depth(
    strategy: str, table: Table, depth: int, *, evaluations: int, record_seed: int, seed: int = 0
) -> Replay:
    """Run a strategy to find the best set of ``depth`` layers with at most this many evaluations.

    A strategy minimises the number of layers within a tolerance. Here sets of fewer layers are not available, and the
    tolerance is just below the degradation of the best set of that depth so far, so each answer must beat the last. The
    best score so far replaces the full model's, which a table may lack. Raises StudyError if the strategy measures no
    set of this depth, and whatever the strategy raises.
    """
    runs = {key.layers: trial for key, trial in table.trials.items() if key.seed == record_seed}
    among = frozenset(layers for layers in runs if layers.depth >= depth and not layers.is_full)
    history: list[Trial] = []
    while len(history) < evaluations:
        scores = {trial.layers: trial.score for trial in history if trial.score is not None}
        ceiling = max(scores.values(), default=100.0)
        best = max((score for layers, score in scores.items() if layers.depth == depth), default=None)
        tolerance = Tolerance(100.0 if best is None else ceiling - best - TIE / 100, {FULL_RUNG: ceiling})
        problem = SearchProblem(table.total, tolerance, among=among, seed=seed, evaluations=evaluations)
        proposed = [layers for layers in propose(strategy, history, problem) if layers in among]
        if not proposed:
            break
        history += [runs[layers] for layers in proposed[: evaluations - len(history)]]
    found = [trial for trial in history if trial.layers.depth == depth and trial.score is not None]
    if not found:
        raise StudyError(f"{strategy} measures no set of {depth} layers that the table {table.name} holds")
    return Replay(tuple(history), max(found, key=lambda trial: trial.score or 0.0).layers, ())


def _unrecorded(key: TrialKey) -> Trial:
    return Trial(key, "selection", "failed", error=UNRECORDED)


def _read(record: Mapping[str, Any], total: int) -> Trial:
    key = TrialKey(LayerSet(tuple(record["kept"]), total), float(record["rung"]), int(record["seed"]))
    further = {name: float(value) for name, value in record.items() if name not in NAMED_FIELDS}
    return Trial(key, "selection", "complete", float(record["score"]), further, train_tokens=round(TOKENS * key.rung))


def _prefix(trial: Trial) -> Trial:
    """The first third of this run as a trial of a lower rung, which it approximates."""
    key = replace(trial.key, rung=PREFIX_RUNG)
    return Trial(key, "selection", "complete", trial.metrics[PREFIX], train_tokens=round(TOKENS * PREFIX_RUNG))


def _read_outputs(path: Path, keys: tuple[TrialKey, ...]) -> Outputs | None:
    if not path.exists():
        return None
    with np.load(path) as arrays:
        logits, labels = arrays["selection_logits"], arrays["selection_labels"].astype(np.int64)
    if logits.shape[:2] != (len(keys), len(labels)):
        raise ValueError(f"{path.name} does not belong to these records: {logits.shape}, {labels.shape}")
    return Outputs(keys, logits, labels)
