"""What the search budget still allows: fine-tunes by their number, and hours by how long they take here.

``running`` are the evaluations under way, which count as if they had just begun.
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

# A confirmed set keeps about this share of the layers; only for what to hold back against the clock.
TYPICAL_SHARE = 0.6


@dataclass(frozen=True)
class Pace:
    """Seconds per layer: of training through the full recipe, and of an evaluation."""

    recipe: Recipe
    training: float
    evaluation: float

    @classmethod
    def of(cls, history: Sequence[Trial], recipe: Recipe) -> Pace:
        """From finished trials; no time at all where there are none yet."""
        finished = [trial for trial in history if trial.state != "failed"]
        trained = sum(trial.rung * training_depth(recipe, trial.layers) for trial in finished)
        evaluated = sum(trial.layers.depth for trial in finished)
        return cls(
            recipe,
            sum(trial.train_seconds for trial in finished) / trained if trained else 0.0,
            sum(trial.evaluation_seconds for trial in finished) / evaluated if evaluated else 0.0,
        )

    def seconds(self, jobs: Sequence[Job], width: int) -> float:
        """How long these jobs take, ``width`` at a time."""
        spent = [
            job.key.rung * training_depth(self.recipe, job.key.layers) * self.training
            + job.key.layers.depth * self.evaluation
            for job in jobs
        ]
        return max([sum(spent) / width, *spent], default=0.0)


@dataclass(frozen=True)
class RemainingBudget:
    """A search budget being spent, by confirmations of ``seeds`` runs, ``width`` evaluations at a time."""

    budget: SearchBudget
    seeds: int
    width: int
    recipe: Recipe
    began: float = field(default_factory=lambda: time.monotonic())

    def fine_tunes(self, history: Sequence[Trial], running: Collection[Job], total: int, confirmations: int) -> float:
        """How many more are allowed beside so many confirmations; against the clock, no more than run at a time."""
        allowed = math.inf
        if self.budget.max_hours is not None:
            in_time = self._seconds_left() > self._held_back(history, total, confirmations)
            allowed = self.width - len(running) if in_time else 0
        return min(allowed, self._trials_left(history, running) - confirmations * self.seeds)

    def covers(self, jobs: Sequence[Job], history: Sequence[Trial], running: Collection[Job]) -> bool:
        """Whether these evaluations are allowed and will be finished in time, as far as the finished ones tell."""
        if len(jobs) > self._trials_left(history, running):
            return False
        in_time = self.budget.max_hours is None
        return in_time or Pace.of(history, self.recipe).seconds([*running, *jobs], self.width) <= self._seconds_left()

    def confirmations(self, history: Sequence[Trial], running: Collection[Job], total: int) -> float:
        """How many more confirmations are allowed, with as many layers as is typical."""
        seconds = self._held_back(history, total, 1)
        in_time = self._seconds_left() / seconds if self.budget.max_hours is not None and seconds else math.inf
        return min(in_time, self._trials_left(history, running) / self.seeds)

    def _trials_left(self, history: Sequence[Trial], running: Collection[Job]) -> float:
        limit = self.budget.max_trials
        return math.inf if limit is None else limit - len(history) - len(running)

    def _held_back(self, history: Sequence[Trial], total: int, confirmations: int) -> float:
        """Seconds that so many confirmations take."""
        kept = LayerSet(tuple(range(max(1, round(TYPICAL_SHARE * total)))), total)
        run = Job(TrialKey(kept, FULL_RUNG, 0), "certification")
        return confirmations * Pace.of(history, self.recipe).seconds([run] * self.seeds, self.width)

    def _seconds_left(self) -> float:
        hours = self.budget.max_hours
        return math.inf if hours is None else 3600 * hours - (time.monotonic() - self.began)
