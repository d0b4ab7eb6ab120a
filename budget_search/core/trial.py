"""Records of evaluations: their key, their measurements, and the tolerance they are compared with. No verdicts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from budget_search.core.layers import LayerSet

Split = Literal["selection", "certification"]
State = Literal["complete", "collapsed", "failed"]
FULL_RUNG = 1.0
# A forward pass costs a third of a training step, which is a forward and a backward pass.
EVALUATION_COST = 1 / 3


@dataclass(frozen=True, order=True)
class TrialKey:
    """Identifies one evaluation: a layer set, fine-tuned with a seed for a fraction of the full recipe.

    ``rung`` is that fraction. Below 1 it is a screen, scored on ``selection``. Screens and confirmations never share a
    seed, so the key needs no split.
    """

    layers: LayerSet
    rung: float
    seed: int

    def __str__(self) -> str:
        return f"layers {self.layers}, rung {self.rung:.4g}, seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """An evaluation to run. ``keep_weights`` is set if the layer set may become an answer."""

    key: TrialKey
    split: Split
    keep_weights: bool = False


@dataclass(frozen=True)
class Trial:
    """One finished evaluation: measurements only.

    ``score`` is the task's metric in points (0-100, higher is better), never rounded; None if the trial failed.
    ``metrics`` are further measurements: secondary metrics in points, and ``loss``, the mean loss per example.
    A ``collapsed`` trial predicted one class for at least 99 % of the examples, or a constant; it has a score.
    ``machine_failure``: the machine caused the failure (out of memory, a killed worker), not the layer set. The trial
    is then run again with the same seed. ``train_layer_tokens`` counts each of the ``train_tokens`` once per layer that
    processed it; None means that exactly the kept layers did. ``execution`` says how the training steps ran: "graph"
    or "eager", the latter with its reason on a GPU.
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
    execution: str | None = None

    @property
    def training_work(self) -> int:
        """Training tokens times layers, a measure of the arithmetic of training."""
        return self.train_tokens * self.layers.depth if self.train_layer_tokens is None else self.train_layer_tokens

    @property
    def layers(self) -> LayerSet:
        return self.key.layers

    @property
    def rung(self) -> float:
        return self.key.rung


@dataclass(frozen=True)
class Tolerance:
    """The accepted degradation against the baseline, on the screens of a study.

    ``delta`` is in points. ``baselines`` holds the full model's screen score per rung, so that only scores of the same
    rung are compared. ``slope`` is the degradation of a full run per point of degradation on the screen; ``delta`` is
    already adjusted for it. ``baseline_losses`` is the full model's mean loss per example by rung, where known.
    """

    delta: float
    baselines: Mapping[float, float]
    slope: float = 1.0
    baseline_losses: Mapping[float, float] = field(default_factory=dict)

    @property
    def full_delta(self) -> float:
        """The accepted degradation of a full run, in points."""
        return self.delta * self.slope

    def degradation(self, trial: Trial) -> float:
        """Baseline score minus this score at the same rung, in points; infinite for a failed trial."""
        return float("inf") if trial.score is None else self.baselines[trial.rung] - trial.score

    def loss_increase(self, trial: Trial) -> float | None:
        """Mean loss per example minus the baseline's at the same rung; None if either is unknown."""
        own, baseline = trial.metrics.get("loss"), self.baseline_losses.get(trial.rung)
        return None if own is None or baseline is None else own - baseline

    def allows(self, trial: Trial) -> bool:
        return self.degradation(trial) <= self.delta


@dataclass(frozen=True)
class SearchBudget:
    """Limits on the cost of a search, not on the layers of the answer; None means no limit."""

    max_trials: int | None = None
    max_hours: float | None = None

    def after(self, seconds: float) -> SearchBudget:
        """The remaining budget after this many seconds of the study, earlier commands included."""
        left = None if self.max_hours is None else max(0.0, self.max_hours - seconds / 3600)
        return replace(self, max_hours=left)


class TrialsByKey:
    """One trial per key, sorted by key; a re-run after a machine failure replaces the failed trial.

    Insertion into the sorted list stays cheap with ten thousand trials; a search adds one after every evaluation.
    """

    def __init__(self, trials: Iterable[Trial] = ()) -> None:
        self._keys: list[TrialKey] = []
        self._trials: list[Trial] = []
        for trial in trials:
            self.add(trial)

    def add(self, trial: Trial) -> None:
        position = bisect_left(self._keys, trial.key)
        if self._keys[position : position + 1] == [trial.key]:
            self._trials[position] = trial
            return
        self._keys.insert(position, trial.key)
        self._trials.insert(position, trial)

    def find(self, key: TrialKey) -> Trial | None:
        position = bisect_left(self._keys, key)
        return self._trials[position] if self._keys[position : position + 1] == [key] else None

    def to_list(self) -> list[Trial]:
        return list(self._trials)
