"""The confirmations of a study: full-recipe runs with fresh seeds, scored on ``certification``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import takewhile

from budget_search.core.layers import LayerSet
from budget_search.core.trial import Trial
from budget_search.layer_search.surrogate import FullRuns
from budget_search.layer_search.verdict import expected_seed_sd

# A confirmation stops early for futility when its mean over all seeds is within delta with less than this probability.
# Only its own runs count for that, not the surrogate's prediction.
FUTILITY = 0.1


class Confirmations:
    """A read-only view of the confirmations in ``history`` that used these seeds.

    Every confirmed set has a score for each of ``seeds``. Some of these sets have scores for ``further_seeds`` as well,
    which count in their order, up to the first for which the set or the baseline has none. A further run of a smaller
    set that failed counts as well, as that of any seed does: it disqualifies the set.
    """

    def __init__(
        self, history: Sequence[Trial], total: int, seeds: Sequence[int], further_seeds: Sequence[int] = ()
    ) -> None:
        self.full = LayerSet.full(total)
        self._seeds = tuple(seeds)
        self._runs: dict[LayerSet, dict[int, Trial]] = {}
        for trial in history:
            if trial.split == "certification" and trial.key.seed in (*seeds, *further_seeds):
                self._runs.setdefault(trial.layers, {})[trial.key.seed] = trial
        baseline = self.scores(self.full).keys()
        for layers, runs in self._runs.items():
            paired = self.scores(layers).keys() & baseline
            further = takewhile(paired.__contains__, further_seeds) if self.is_complete(layers) else ()
            failed = (seed for seed, trial in runs.items() if not layers.is_full and _failed_for_good(trial))
            counted = {*seeds, *further, *failed}
            self._runs[layers] = {seed: trial for seed, trial in runs.items() if seed in counted}

    @property
    def started(self) -> list[LayerSet]:
        """The smaller sets with at least one run."""
        return [layers for layers in self._runs if not layers.is_full]

    @property
    def sets(self) -> list[LayerSet]:
        """The smaller sets with a score for every seed, and no failed run."""
        return [layers for layers in self.started if self.is_complete(layers) and not self.failed_run(layers)]

    @property
    def uncollapsed(self) -> list[LayerSet]:
        """The sets in ``sets`` without a collapsed run; only these enter the pooled variance between seeds."""
        return [layers for layers in self.sets if not self.collapsed(layers)]

    def is_complete(self, layers: LayerSet) -> bool:
        return self.scores(layers).keys() >= {*self._seeds}

    def seeds_of(self, layers: LayerSet) -> tuple[int, ...]:
        """The seeds that a complete set has scores for, sorted."""
        return tuple(self.scores(layers))

    def runs(self, layers: LayerSet) -> list[Trial]:
        """The runs of a set, sorted by seed; failed ones included."""
        return [trial for _, trial in sorted(self._runs.get(layers, {}).items())]

    def scores(self, layers: LayerSet) -> dict[int, float]:
        """The scores of a set by seed, in points."""
        return {trial.key.seed: trial.score for trial in self.runs(layers) if trial.score is not None}

    def collapsed(self, layers: LayerSet) -> int:
        """The number of runs of a set that predicted a single class."""
        return sum(trial.state == "collapsed" for trial in self.runs(layers))

    def failed_run(self, layers: LayerSet) -> Trial | None:
        """A run that failed because of the layer set, not of the machine; such a set cannot be an answer."""
        return next(filter(_failed_for_good, self.runs(layers)), None)

    def degradations(self, layers: LayerSet) -> list[float]:
        """Degradation by seed, in points, for the seeds that both the set and the baseline have."""
        baseline = self.scores(self.full)
        return [baseline[seed] - score for seed, score in self.scores(layers).items() if seed in baseline]

    @property
    def full_runs(self) -> dict[LayerSet, FullRuns]:
        """The mean degradation so far of every set that has at least one score."""
        by_set = {layers: self.degradations(layers) for layers in self.started}
        return {layers: FullRuns(statistics.fmean(values), len(values)) for layers, values in by_set.items() if values}

    def median_seed(self, layers: LayerSet) -> int:
        """The seed with the median score; for an even number of seeds, the lower of the two in the middle."""
        by_score = sorted((score, seed) for seed, score in self.scores(layers).items())
        return by_score[(len(by_score) - 1) // 2][1]

    def is_futile(self, layers: LayerSet, delta: float) -> bool:
        """Whether a run failed, or the mean over all seeds is unlikely to be within delta (points).

        The remaining runs are predicted from the mean of the finished ones, with the baseline's spread between seeds.
        """
        if self.failed_run(layers):
            return True
        degradations = self.degradations(layers)
        remaining = sum(seed not in self.scores(layers) for seed in self._seeds)
        if not degradations or not remaining:
            return False
        required_mean = (delta * (len(degradations) + remaining) - sum(degradations)) / remaining
        spread = math.sqrt(2) * self.seed_sd * math.sqrt(1 / remaining + 1 / len(degradations))
        probability = statistics.NormalDist().cdf((required_mean - statistics.fmean(degradations)) / spread)
        return probability < FUTILITY

    @property
    def seed_sd(self) -> float:
        """Standard deviation of a score between seeds, in points, estimated from the baseline's runs."""
        return expected_seed_sd(list(self.scores(self.full).values()))


def _failed_for_good(trial: Trial) -> bool:
    """Whether a run failed because of the layer set; one that the machine made fail is run again."""
    return trial.state == "failed" and not trial.machine_failure
