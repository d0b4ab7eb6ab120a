"""The screens of a study, each compared with the baseline at the same rung, and the rung of the next screens.

A screen is useful only if it ranks layer sets as longer runs do. The search checks that with its confirmations and,
where that is cheap, by screening some sets twice as long. If the rankings disagree, all later screens are longer.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property

from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Tolerance, Trial
from budget_search.layer_search.surrogate import BROKEN

# A rung is checked after this many screens, on this many sets.
SCREENS_BEFORE_CHECK = 8
CHECKED = 5
# Screens become longer if their rank correlation with longer runs is below this.
AGREEMENT = 0.5
# Bounds on the estimated slope, which few confirmations determine badly.
SLOPES = (0.25, 2.0)
# Longer screens would cost as much as confirmations, so they are run neither to check shorter ones nor to repeat those
# that collapsed.
LONGEST_CHECKING_RUNG = 0.5


class Screens:
    """A read-only view of the screens in ``history`` that used this seed."""

    def __init__(self, history: Sequence[Trial], total: int, first_rung: float, seed: int) -> None:
        self._full = LayerSet.full(total)
        self._first_rung = first_rung
        self._by_rung: dict[float, dict[LayerSet, Trial]] = {}
        for trial in sorted(history, key=lambda trial: trial.key):
            if trial.split == "selection" and trial.key.seed == seed and not trial.machine_failure:
                self._by_rung.setdefault(trial.rung, {})[trial.layers] = trial
        self._full_degradations = _full_degradations(history, self._full)

    @cached_property
    def rung(self) -> float:
        """The rung of the next screens: the shortest at which the full model learns and rankings agree well enough."""
        rung = self._first_rung
        while rung < FULL_RUNG and (self._baseline_collapsed(rung) or self._misleads(rung)):
            rung = longer(rung)
        return rung

    def _misleads(self, rung: float) -> bool:
        """Whether the ranking disagrees with longer runs, and longer screens are still cheaper than confirmations."""
        return longer(rung) <= LONGEST_CHECKING_RUNG and self.agreement(rung) < AGREEMENT

    @cached_property
    def trials(self) -> list[Trial]:
        """One trial per layer set, from its longest screen, sorted by key; compare them with a ``Tolerance`` only.

        Screens shorter than the current rung are left out, because their ranking was unreliable.
        """
        longest: dict[LayerSet, Trial] = {}
        for rung in sorted(self._by_rung):
            if rung >= self.rung and self._baseline(rung) is not None:
                longest.update(self._by_rung[rung])
        return sorted(longest.values(), key=lambda trial: trial.key)

    def tolerance(self, delta: float) -> Tolerance:
        """The tolerance for screens of sets whose expected degradation in a full run is at most ``delta`` points."""
        baselines = {rung: self._baseline(rung) for rung in self._by_rung}
        known = {rung: score for rung, score in baselines.items() if score is not None}
        losses = {rung: self._by_rung[rung][self._full].metrics.get("loss") for rung in known}
        return Tolerance(
            delta / self.slope, known, self.slope, {rung: loss for rung, loss in losses.items() if loss is not None}
        )

    @cached_property
    def slope(self) -> float:
        """Degradation of a full run per point of degradation on a screen, estimated from the confirmations.

        Screens mostly exaggerate, because a smaller model needs more training to recover. The estimate is a regression
        through the origin with a pseudo-observation of one point each, so it is 1 before the first confirmation.
        """
        full = self._full_degradations
        by_rung = {rung: self._degradations(rung) for rung in self._by_rung}
        screened = {trial.layers: by_rung[trial.rung].get(trial.layers) for trial in self.trials}
        pairs = [(short, full[layers]) for layers, short in screened.items() if short and layers in full]
        product = 1.0 + sum(short * long for short, long in pairs)
        square = 1.0 + sum(short**2 for short, _ in pairs)
        return min(max(product / square, SLOPES[0]), SLOPES[1])

    def needed(self, *, full_first: bool = False) -> list[tuple[LayerSet, float]]:
        """The screens that the search itself needs, as pairs of layer set and rung: baselines first, then repeats.

        The full model is needed at every rung in use. A set is screened again, twice as long but for half the recipe at
        most, if its screen collapsed (it may have been too short) or if the set is used to check the current rung. What
        collapses in half the recipe may be confirmed all the same. ``full_first``: smaller models start from the full
        model of their rung, so that it is needed for a repeat as well.
        """
        longest = self._longest()
        collapsed = [
            (layers, longer(trial.rung))
            for layers, trial in sorted(longest.items())
            if trial.state == "collapsed" and longer(trial.rung) <= LONGEST_CHECKING_RUNG
        ]
        checking = [(layers, longer(self.rung)) for layers in self._checking(self.rung)]
        missing = [pair for pair in (*collapsed, *checking) if pair[0] not in self._by_rung.get(pair[1], {})]
        learnt = (trial.rung for trial in longest.values() if trial.state == "complete")
        rungs = {self.rung, *learnt, *(rung for _, rung in (*checking, *(collapsed if full_first else ())))}
        baselines = [(self._full, rung) for rung in sorted(rungs) if self._full not in self._by_rung.get(rung, {})]
        return baselines + missing

    def _longest(self) -> dict[LayerSet, Trial]:
        """The longest screen of every smaller set, without screens shorter than the current rung."""
        longest: dict[LayerSet, Trial] = {}
        for rung in sorted(rung for rung in self._by_rung if rung >= self.rung):
            longest |= self._by_rung[rung]
        longest.pop(self._full, None)
        return longest

    @cached_property
    def fewest_working(self) -> int:
        """The fewest layers of a set that is not broken, judged by full runs and by screens of half the recipe.

        The full depth if all sets are broken; 1 if screens are shorter, because these exaggerate too much.
        """
        if self.rung < LONGEST_CHECKING_RUNG:
            return 1
        tolerance = self.tolerance(0.0)
        learnt = [trial for trial in self.trials if trial.state == "complete"]
        working = [trial.layers.depth for trial in learnt if tolerance.degradation(trial) < BROKEN]
        working += [layers.depth for layers, full in self._full_degradations.items() if full < BROKEN]
        return min(working, default=self._full.total)

    def agreement(self, rung: float) -> float:
        """Rank correlation of degradations at this rung and in longer runs; 1 while too few sets have both.

        Degradations are noisy. Until there are enough full runs, the rank correlation of loss increases counts instead
        if it is higher.
        """
        short, long = self._degradations(rung), self._degradations_beyond(rung)
        by_score = _agreement(short, long)
        if len(short.keys() & self._full_degradations.keys()) >= CHECKED:
            return by_score
        short_losses, long_losses = self._loss_increases(rung), self._loss_increases(longer(rung))
        if len(short_losses.keys() & long_losses.keys()) < CHECKED:
            return by_score
        return max(by_score, _agreement(short_losses, long_losses))

    def _degradations_beyond(self, rung: float) -> dict[LayerSet, float]:
        """Degradation of each set in its longest run beyond this rung, in points."""
        longest: dict[LayerSet, float] = {}
        for other in sorted(self._by_rung):
            if other > rung:
                longest |= self._degradations(other)
        return longest | self._full_degradations

    def _degradations(self, rung: float) -> dict[LayerSet, float]:
        """Degradation of each smaller set at this rung, in points, without failed and collapsed trials."""
        baseline = self._baseline(rung)
        return {
            layers: baseline - trial.score
            for layers, trial in self._by_rung.get(rung, {}).items()
            if baseline is not None and trial.score is not None and trial.state == "complete" and not layers.is_full
        }

    def _loss_increases(self, rung: float) -> dict[LayerSet, float]:
        """Mean loss per example minus the baseline's at this rung, for the sets in ``_degradations``, if recorded."""
        degradations = self._degradations(rung)
        baseline = self._by_rung[rung][self._full].metrics.get("loss") if degradations else None
        losses = {layers: self._by_rung[rung][layers].metrics.get("loss") for layers in degradations}
        return {layers: loss - baseline for layers, loss in losses.items() if loss is not None and baseline is not None}

    def _checking(self, rung: float) -> list[LayerSet]:
        """The sets to screen twice as long as a check, evenly spaced in the ranking; none once enough have both."""
        degradations = self._degradations(rung)
        if longer(rung) > LONGEST_CHECKING_RUNG or len(degradations) < SCREENS_BEFORE_CHECK:
            return []
        if len(degradations.keys() & self._degradations(longer(rung)).keys()) >= CHECKED:
            return []
        ranked = sorted(degradations, key=lambda layers: (-degradations[layers], layers))
        step = (len(ranked) - 1) / (CHECKED - 1)
        return [ranked[round(step * position)] for position in range(CHECKED)]

    def _baseline(self, rung: float) -> float | None:
        trial = self._by_rung.get(rung, {}).get(self._full)
        return None if trial is None else trial.score

    def _baseline_collapsed(self, rung: float) -> bool:
        trial = self._by_rung.get(rung, {}).get(self._full)
        return trial is not None and trial.state != "complete"


def longer(rung: float) -> float:
    """The next rung: twice as long, at most the full recipe."""
    return min(FULL_RUNG, 2 * rung)


def _full_degradations(history: Sequence[Trial], full: LayerSet) -> dict[LayerSet, float]:
    """Mean degradation of each smaller set over its confirmation runs, paired by seed, in points."""
    baseline = {
        trial.key.seed: trial.score for trial in history if trial.split == "certification" and trial.layers == full
    }
    by_set: dict[LayerSet, list[float]] = {}
    for trial in history:
        reference = baseline.get(trial.key.seed)
        if trial.split != "certification" or trial.layers == full or trial.score is None or reference is None:
            continue
        by_set.setdefault(trial.layers, []).append(reference - trial.score)
    return {layers: statistics.fmean(values) for layers, values in by_set.items()}


def _agreement(short: Mapping[LayerSet, float], long: Mapping[LayerSet, float]) -> float:
    """Rank correlation over the sets in both; 1 if there are too few."""
    both = [layers for layers in short if layers in long]
    if len(both) < CHECKED:
        return 1.0
    return _rank_correlation([short[layers] for layers in both], [long[layers] for layers in both])


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 if one side is constant."""
    if len(set(first)) == 1 or len(set(second)) == 1:
        return 0.0
    return statistics.correlation(_ranks(first), _ranks(second))


def _ranks(values: Sequence[float]) -> list[float]:
    """Twice the rank of each value, counted from a half; equal values get the mean of theirs."""
    ordered = sorted(values)
    return [bisect_left(ordered, value) + bisect_right(ordered, value) for value in values]
