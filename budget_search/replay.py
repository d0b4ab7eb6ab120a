"""Answers evaluations from a recorded table instead of a fine-tune: a strategy is played through in milliseconds.

A table is a JSON file: ``layers``, ``metric``, ``complete_depths`` (depths of which every layer set was measured) and
``records``, each ``{"kept": [0, 1], "rung": 1.0, "seed": 0, "score": 87.7}`` with further measurements beside them.
A layer set that a table does not hold was not measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from budget_search.errors import StudyError, UsageError
from budget_search.layers import LayerSet
from budget_search.strategies import Question, propose, smallest_holding
from budget_search.trial import FULL_RUNG, Job, Tolerance, Trial, TrialKey

NAMED_FIELDS = ("kept", "rung", "seed", "score")
UNRECORDED = "not recorded"


@dataclass(frozen=True)
class Table:
    """The recorded trials of one model on one task, by key; scores and further metrics as recorded."""

    name: str
    total: int
    metric: str
    complete_depths: frozenset[int]
    trials: Mapping[TrialKey, Trial]

    @classmethod
    def load(cls, path: Path | str) -> Table:
        """Read a table. Raises UsageError for a file that is none."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            total = int(content["layers"])
            trials = [_read(record, total) for record in content["records"]]
            complete, metric = frozenset(map(int, content["complete_depths"])), str(content["metric"])
        except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
            raise UsageError(f"cannot read {path.name} as a table of recorded scores: {error!r}") from error
        return cls(path.stem, total, metric, complete, {trial.key: trial for trial in trials})

    def layer_sets(self) -> list[LayerSet]:
        """Everything measured, each once, sorted."""
        return sorted({key.layers for key in self.trials})

    def seeds(self) -> list[int]:
        return sorted({key.seed for key in self.trials})

    def trial(self, key: TrialKey) -> Trial:
        """The recorded trial. Raises StudyError where none was recorded."""
        if key not in self.trials:
            raise StudyError(f"the table {self.name} holds no record of {key}")
        return self.trials[key]

    def run_jobs(self, jobs: Sequence[Job]) -> Iterator[Trial]:
        """What a search calls to have evaluations run. Raises StudyError where one was not recorded."""
        for job in jobs:
            yield replace(self.trial(job.key), split=job.split)

    def mean_score(self, layers: LayerSet, rung: float = FULL_RUNG) -> float:
        """Points, over the recorded seeds. Raises StudyError where none was recorded."""
        keys = [TrialKey(layers, rung, seed) for seed in self.seeds()]
        scores = [self.trials[key].score for key in keys if key in self.trials]
        known = [score for score in scores if score is not None]
        if not known:
            raise StudyError(f"the table {self.name} holds no score of layers {layers} at rung {rung:.4g}")
        return sum(known) / len(known)


@dataclass
class Memory:
    """A study's history without a disk; a trial that is measured again takes the earlier one's place."""

    trials: list[Trial] = field(default_factory=list)
    noted: dict[str, Any] = field(default_factory=dict)

    @property
    def history(self) -> list[Trial]:
        return sorted({trial.key: trial for trial in self.trials}.values(), key=lambda trial: trial.key)

    def append(self, trial: Trial) -> None:
        self.trials.append(trial)

    @property
    def facts(self) -> Mapping[str, Any]:
        return dict(self.noted)

    def note(self, **facts: Any) -> None:
        self.noted.update(facts)


class Silent:
    """Watches a search and says nothing."""

    def planned(self, *facts: Any) -> None: ...

    def stage(self, text: str) -> None: ...

    def finished(self, trial: Trial) -> None: ...

    def answered(self, delta: float, layers: LayerSet) -> None: ...


@dataclass(frozen=True)
class Replay:
    """A strategy played on a table: what it measured, in order and without the baseline, and what it chose.

    ``unrecorded`` are sets that it asked for and the table does not hold. They were answered with a failed trial, so
    they are never chosen; where there are any, the strategy was not seen at its best.
    """

    trials: tuple[Trial, ...]
    choice: LayerSet
    unrecorded: tuple[LayerSet, ...]

    @property
    def layers(self) -> tuple[LayerSet, ...]:
        """The sets asked for, in order."""
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
    """Let a strategy measure on a table until it has finished, and choose the smallest set within delta (points).

    ``rung`` and ``record_seed`` say which records answer. ``baseline`` (points) stands in for a full model that the
    table does not hold. ``known`` trials are in the history from the start, as in a resumed study; ``facts`` are
    further fields of the strategy's ``Question``, its ``seed`` among them. Raises StudyError without a baseline, and
    what the strategy raises.
    """
    full = TrialKey(LayerSet.full(table.total), rung, record_seed)
    start = Trial(full, "selection", "complete", baseline) if baseline is not None else table.trial(full)
    if start.score is None:
        raise StudyError(f"the table {table.name} holds no score of the full model")
    question = Question(table.total, Tolerance(delta, {rung: start.score}), **facts)
    history = [start, *known]
    while proposed := propose(strategy, history, question):
        keys = [TrialKey(layers, rung, record_seed) for layers in proposed]
        history += [table.trials.get(key) or _unrecorded(key) for key in keys]
    chosen = smallest_holding(history, question)
    missing = tuple(trial.layers for trial in history if trial.error == UNRECORDED)
    return Replay(tuple(history[1:]), chosen.layers if chosen else full.layers, missing)


def _unrecorded(key: TrialKey) -> Trial:
    return Trial(key, "selection", "failed", error=UNRECORDED)


def _read(record: Mapping[str, Any], total: int) -> Trial:
    key = TrialKey(LayerSet(tuple(record["kept"]), total), float(record["rung"]), int(record["seed"]))
    further = {name: float(value) for name, value in record.items() if name not in NAMED_FIELDS}
    return Trial(key, "selection", "complete", float(record["score"]), further)
