"""Records: what an evaluation is called, what it measured, and what a question tolerates. No verdicts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from budget_search.core.layers import LayerSet

Split = Literal["selection", "certification"]
State = Literal["complete", "collapsed", "failed"]
FULL_RUNG = 1.0
# An evaluation reads a token once, a training step the equivalent of three times.
EVALUATION_SHARE = 1 / 3


@dataclass(frozen=True, order=True)
class TrialKey:
    """Names one evaluation: a layer set, fine-tuned for a fraction of the full recipe, from a seed.

    ``rung`` is that fraction. Below 1 it is a screen, scored on ``selection``; screen seeds and confirmation seeds
    never coincide, so the key needs no split.
    """

    layers: LayerSet
    rung: float
    seed: int

    def __str__(self) -> str:
        return f"layers {self.layers}, rung {self.rung:.4g}, seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """An evaluation to run. Weights are kept where the layer set may become an answer."""

    key: TrialKey
    split: Split
    keep_weights: bool = False


@dataclass(frozen=True)
class Trial:
    """One finished evaluation: measurements only.

    ``score`` is the task's metric in points (0-100, higher is better), never rounded; None when failed.
    ``metrics`` are further measurements: secondary metrics in points, and ``loss``, the mean loss per example.
    A ``collapsed`` trial predicted one class for at least 99 % of the examples, or a constant; it has a score.
    ``machine_failure`` says that it failed for reasons of the machine (out of memory, a killed worker), not of the
    layer set: it says nothing about the set and is run again with the same seed.
    ``train_layer_tokens`` counts each of the ``train_tokens`` once per layer that it went through; None stands for the
    kept layers, no more and no fewer.
    """

    key: TrialKey
    split: Split
    state: State
    score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    train_tokens: int = 0
    evaluation_tokens: int = 0
    peak_bytes: int = 0
    error: str | None = None
    machine_failure: bool = False
    train_layer_tokens: int | None = None

    @property
    def training_work(self) -> int:
        """Training tokens times layers: what training took, in arithmetic."""
        return self.train_tokens * self.layers.depth if self.train_layer_tokens is None else self.train_layer_tokens

    @property
    def layers(self) -> LayerSet:
        return self.key.layers

    @property
    def rung(self) -> float:
        return self.key.rung


@dataclass(frozen=True)
class Tolerance:
    """How much worse than the baseline is still good enough, on the screens of a study.

    ``delta`` is in points; ``baselines`` holds the full model's screen score per rung, so that scores of different
    rungs are never compared with each other. ``slope`` is what a set loses in full per point lost on its screen:
    ``delta`` allows for it. ``baseline_losses`` is the full model's mean loss per example and rung, where known.
    """

    delta: float
    baselines: Mapping[float, float]
    slope: float = 1.0
    baseline_losses: Mapping[float, float] = field(default_factory=dict)

    @property
    def delta_in_full(self) -> float:
        """What may be lost in full, in points."""
        return self.delta * self.slope

    def degradation(self, trial: Trial) -> float:
        """Baseline score minus this score, in points, both of the same rung; infinite for a failed trial."""
        return float("inf") if trial.score is None else self.baselines[trial.rung] - trial.score

    def further_loss(self, trial: Trial) -> float | None:
        """Mean loss per example beyond the baseline's at the same rung; None where one of them is not known."""
        own, baseline = trial.metrics.get("loss"), self.baseline_losses.get(trial.rung)
        return None if own is None or baseline is None else own - baseline

    def holds(self, trial: Trial) -> bool:
        return self.degradation(trial) <= self.delta


@dataclass(frozen=True)
class SearchBudget:
    """What a search may spend on fine-tunes; None is no limit. Not to be confused with the answer's layers."""

    max_trials: int | None = None
    max_hours: float | None = None


class TrialsByKey:
    """One trial per key, sorted; a re-run after the machine failed takes the place of the failure.

    Adding to ten thousand trials costs what adding to ten does: a search asks for them after every evaluation.
    """

    def __init__(self, trials: Iterable[Trial] = ()) -> None:
        self._keys: list[TrialKey] = []
        self._trials: list[Trial] = []
        for trial in trials:
            self.add(trial)

    def add(self, trial: Trial) -> None:
        place = bisect_left(self._keys, trial.key)
        if self._keys[place : place + 1] == [trial.key]:
            self._trials[place] = trial
            return
        self._keys.insert(place, trial.key)
        self._trials.insert(place, trial)

    def find(self, key: TrialKey) -> Trial | None:
        place = bisect_left(self._keys, key)
        return self._trials[place] if self._keys[place : place + 1] == [key] else None

    def in_order(self) -> list[Trial]:
        return list(self._trials)
