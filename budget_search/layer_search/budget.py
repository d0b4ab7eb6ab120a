"""The remaining search budget: fine-tunes by number, and hours by the duration of finished trials.

``running`` are the evaluations in progress; they count as if they had just started.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from budget_search.core.config import Recipe
from budget_search.core.dropping import training_depth
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, SearchBudget, Trial, TrialKey

# The share of the layers that a confirmed set typically keeps, for the time reserved for confirmations.
TYPICAL_SHARE = 0.6


@dataclass(frozen=True)
class Pace:
    """Measured speed: seconds per layer of training for the full recipe, and seconds per layer of evaluating once."""

    recipe: Recipe
    training: float
    evaluation: float

    @classmethod
    def of(cls, history: Sequence[Trial], recipe: Recipe) -> Pace:
        """From finished trials; zero seconds if there are none."""
        finished = [trial for trial in history if trial.state != "failed"]
        trained = sum(trial.rung * training_depth(recipe, trial.layers) for trial in finished)
        evaluated = sum(trial.layers.depth for trial in finished)
        return cls(
            recipe,
            sum(trial.train_seconds for trial in finished) / trained if trained else 0.0,
            sum(trial.evaluation_seconds for trial in finished) / evaluated if evaluated else 0.0,
        )

    def seconds(self, jobs: Sequence[Job], width: int) -> float:
        """Predicted duration of these jobs, ``width`` at a time."""
        spent = [
            job.key.rung * training_depth(self.recipe, job.key.layers) * self.training
            + job.key.layers.depth * self.evaluation
            for job in jobs
        ]
        return max([sum(spent) / width, *spent], default=0.0)


@dataclass(frozen=True)
class RemainingBudget:
    """A partly spent search budget; a confirmation has ``seeds`` runs, ``width`` evaluations run at once."""

    budget: SearchBudget
    seeds: int
    width: int
    recipe: Recipe
    began: float = field(default_factory=lambda: time.monotonic())

    def fine_tunes(self, history: Sequence[Trial], running: Collection[Job], total: int, confirmations: int) -> float:
        """How many more fine-tunes are allowed if this many confirmations are reserved.

        With a time limit, no more than can start now, because their duration is not known.
        """
        allowed = math.inf
        if self.budget.max_hours is not None:
            in_time = self._seconds_left() > self._reserved_seconds(history, total, confirmations)
            allowed = self.width - len(running) if in_time else 0
        return min(allowed, self._trials_left(history, running) - confirmations * self.seeds)

    def covers(self, jobs: Sequence[Job], history: Sequence[Trial], running: Collection[Job]) -> bool:
        """Whether these evaluations are allowed and, at the measured speed, finish in time."""
        if len(jobs) > self._trials_left(history, running):
            return False
        in_time = self.budget.max_hours is None
        return in_time or Pace.of(history, self.recipe).seconds([*running, *jobs], self.width) <= self._seconds_left()

    def confirmations(self, history: Sequence[Trial], running: Collection[Job], total: int) -> float:
        """How many more confirmations of sets of typical depth are allowed."""
        seconds = self._reserved_seconds(history, total, 1)
        in_time = self._seconds_left() / seconds if self.budget.max_hours is not None and seconds else math.inf
        return min(in_time, self._trials_left(history, running) / self.seeds)

    def _trials_left(self, history: Sequence[Trial], running: Collection[Job]) -> float:
        limit = self.budget.max_trials
        return math.inf if limit is None else limit - len(history) - len(running)

    def _reserved_seconds(self, history: Sequence[Trial], total: int, confirmations: int) -> float:
        """Predicted seconds for this many confirmations."""
        kept = LayerSet(tuple(range(max(1, round(TYPICAL_SHARE * total)))), total)
        run = Job(TrialKey(kept, FULL_RUNG, 0), "certification")
        return confirmations * Pace.of(history, self.recipe).seconds([run] * self.seeds, self.width)

    def _seconds_left(self) -> float:
        hours = self.budget.max_hours
        return math.inf if hours is None else 3600 * hours - (time.monotonic() - self.began)
