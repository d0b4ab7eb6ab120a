"""What the confirmations of a study say: full runs with fresh seeds, scored on ``certification``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from budget_search.core.layers import LayerSet
from budget_search.core.trial import Trial
from budget_search.layer_search.surrogate import FullRuns
from budget_search.layer_search.verdict import expected_seed_sd

# A confirmation is given up when the chance that its mean still comes within delta falls below this, judged by its own
# runs alone: whatever the surrogate believes.
FUTILITY = 0.1


class Confirmations:
    """A view of a study's history for these seeds: pure, made anew whenever the history has grown."""

    def __init__(self, history: Sequence[Trial], total: int, seeds: Sequence[int]) -> None:
        self.full = LayerSet.full(total)
        self._seeds = tuple(seeds)
        self._runs: dict[LayerSet, dict[int, Trial]] = {}
        for trial in history:
            if trial.split == "certification" and trial.key.seed in self._seeds:
                self._runs.setdefault(trial.layers, {})[trial.key.seed] = trial

    @property
    def sets(self) -> list[LayerSet]:
        """The smaller sets with a score for every seed."""
        return [layers for layers in self._runs if not layers.is_full and self.is_complete(layers)]

    @property
    def steady(self) -> list[LayerSet]:
        """Those none of whose runs collapsed: their spread between seeds tells of the others'."""
        return [layers for layers in self.sets if not self.collapsed(layers)]

    @property
    def begun(self) -> list[LayerSet]:
        """The smaller sets with at least one run."""
        return [layers for layers in self._runs if not layers.is_full]

    def is_complete(self, layers: LayerSet) -> bool:
        return len(self.scores(layers)) == len(self._seeds)

    def runs(self, layers: LayerSet) -> list[Trial]:
        """By seed, failed ones included."""
        return [trial for _, trial in sorted(self._runs.get(layers, {}).items())]

    def scores(self, layers: LayerSet) -> dict[int, float]:
        """Points by seed."""
        return {trial.key.seed: trial.score for trial in self.runs(layers) if trial.score is not None}

    def collapsed(self, layers: LayerSet) -> int:
        """How many runs predicted one class only."""
        return sum(trial.state == "collapsed" for trial in self.runs(layers))

    def failed(self, layers: LayerSet) -> Trial | None:
        """A run that failed for a reason of its own, not the machine's; such a set is no answer."""
        return next((t for t in self.runs(layers) if t.state == "failed" and not t.machine_failure), None)

    def lost(self, layers: LayerSet) -> list[float]:
        """Points lost against the baseline, by seed, for the seeds run so far."""
        baseline = self.scores(self.full)
        return [baseline[seed] - score for seed, score in self.scores(layers).items() if seed in baseline]

    @property
    def in_full(self) -> dict[LayerSet, FullRuns]:
        """What every set begun has lost so far."""
        lost = {layers: self.lost(layers) for layers in self.begun}
        return {layers: FullRuns(statistics.fmean(values), len(values)) for layers, values in lost.items() if values}

    def median_seed(self, layers: LayerSet) -> int:
        """The seed whose score is the median; of an even number, the lower middle one."""
        by_score = sorted((score, seed) for seed, score in self.scores(layers).items())
        return by_score[(len(by_score) - 1) // 2][1]

    def hopeless(self, layers: LayerSet, delta: float) -> bool:
        """Whether the mean over all seeds can hardly come within delta (points) any more, or a run has failed.

        The runs to come are expected around the mean of those so far, as far apart as the baseline's seeds.
        """
        if self.failed(layers):
            return True
        lost = self.lost(layers)
        left = len(self._seeds) - len(lost)
        if not lost or not left:
            return False
        needed = (delta * len(self._seeds) - sum(lost)) / left
        spread = math.sqrt(2) * self.seed_sd * math.sqrt(1 / left + 1 / len(lost))
        return statistics.NormalDist().cdf((needed - statistics.fmean(lost)) / spread) < FUTILITY

    @property
    def seed_sd(self) -> float:
        """Standard deviation of a score over seeds, in points, as far as the baseline shows it."""
        return expected_seed_sd(list(self.scores(self.full).values()))
