"""What the screens of a study say, each against the baseline of its own rung, and how long a screen must be.

A screen is worth its price only when its ranking agrees with longer runs. That is checked as the search goes, with the
confirmations that come anyway and, where it is cheap, with some sets screened twice as long; where the ranking differs,
all later screens are longer.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property

from scipy import stats

from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Tolerance, Trial
from budget_search.layer_search.surrogate import BROKEN

# Screens of one rung before some are run twice as long to check it, and how many sets a check needs.
SCREENS_BEFORE_CHECK = 8
CHECKED = 5
# Rank correlation of screens with longer runs below which screens become longer.
AGREEMENT = 0.5
# How much screens may exaggerate or belittle a loss before that is taken for chance.
SLOPES = (0.25, 2.0)
# Beyond this, running screens just to check them would cost as much as confirming.
LONGEST_CHECKING_RUNG = 0.5


class Screens:
    """A view of a study's history, of the screens with one seed: pure, made anew whenever the history has grown."""

    def __init__(self, history: Sequence[Trial], total: int, first_rung: float, seed: int) -> None:
        self._full = LayerSet.full(total)
        self._first_rung = first_rung
        self._by_rung: dict[float, dict[LayerSet, Trial]] = {}
        for trial in sorted(history, key=lambda trial: trial.key):
            if trial.split == "selection" and trial.key.seed == seed and not trial.machine_failure:
                self._by_rung.setdefault(trial.rung, {})[trial.layers] = trial
        self._in_full = _lost_in_full(history, self._full)

    @cached_property
    def rung(self) -> float:
        """The rung of the next screens: the first at which the full model learns and the ranking is not refuted."""
        rung = self._first_rung
        while rung < FULL_RUNG and (self._baseline_collapsed(rung) or self._misleads(rung)):
            rung = longer(rung)
        return rung

    def _misleads(self, rung: float) -> bool:
        """Whether screens twice as long are wanted, and would not take as much as confirmations."""
        return longer(rung) <= LONGEST_CHECKING_RUNG and self.agreement(rung) < AGREEMENT

    @cached_property
    def judged(self) -> list[Trial]:
        """One trial per layer set, from its longest rung; sorted by key. Their scores compare only by a Tolerance.

        Screens shorter than the current rung are not among them: their ranking was found wanting.
        """
        longest: dict[LayerSet, Trial] = {}
        for rung in sorted(self._by_rung):
            if rung >= self.rung and self._baseline(rung) is not None:
                longest.update(self._by_rung[rung])
        return sorted(longest.values(), key=lambda trial: trial.key)

    def tolerance(self, delta: float) -> Tolerance:
        """What a screen may lose for its set to be expected within ``delta`` (points) of the full recipe."""
        baselines = {rung: self._baseline(rung) for rung in self._by_rung}
        known = {rung: score for rung, score in baselines.items() if score is not None}
        losses = {rung: self._by_rung[rung][self._full].metrics.get("loss") for rung in known}
        return Tolerance(
            delta / self.slope, known, self.slope, {rung: loss for rung, loss in losses.items() if loss is not None}
        )

    @cached_property
    def slope(self) -> float:
        """Points lost in full per point lost on a screen: 1 at first, then what the confirmations show.

        Little training is harder on a model with gaps than on a whole one, so screens mostly exaggerate. A regression
        through the origin, held near 1 as if a set that lost a point on its screen had lost a point in full.
        """
        screened = {trial.layers: self._lost(trial.rung).get(trial.layers) for trial in self.judged}
        pairs = [(lost, self._in_full[layers]) for layers, lost in screened.items() if lost and layers in self._in_full]
        product = 1.0 + sum(short * full for short, full in pairs)
        square = 1.0 + sum(short**2 for short, _ in pairs)
        return min(max(product / square, SLOPES[0]), SLOPES[1])

    def doubtful(self) -> list[tuple[LayerSet, float]]:
        """Screens to run longer: (layer set, rung), and the full model wherever something is to be compared with it.

        These are sets whose screen collapsed, which says that it was too short rather than that the set is bad, and
        the sets that check the current rung.
        """
        longest = self._longest()
        collapsed = [
            (layers, longer(trial.rung))
            for layers, trial in sorted(longest.items())
            if trial.state == "collapsed" and trial.rung < FULL_RUNG
        ]
        checking = [(layers, longer(self.rung)) for layers in self._checking(self.rung)]
        missing = [pair for pair in (*collapsed, *checking) if pair[0] not in self._by_rung.get(pair[1], {})]
        learnt = (trial.rung for trial in longest.values() if trial.state == "complete")
        rungs = {self.rung, *learnt, *(rung for _, rung in checking)}
        baselines = [(self._full, rung) for rung in sorted(rungs) if self._full not in self._by_rung.get(rung, {})]
        return baselines + missing

    def _longest(self) -> dict[LayerSet, Trial]:
        """The longest screen of every smaller set, of those that are not too short."""
        longest: dict[LayerSet, Trial] = {}
        for rung in sorted(rung for rung in self._by_rung if rung >= self.rung):
            longest |= self._by_rung[rung]
        longest.pop(self._full, None)
        return longest

    @cached_property
    def fewest_alive(self) -> int:
        """The fewest layers of which anything is left, on screens of half the recipe or in full; of all of them where
        everything broke. 1 where screens are shorter, for these exaggerate too much to tell."""
        if self.rung < LONGEST_CHECKING_RUNG:
            return 1
        tolerance = self.tolerance(0.0)
        learnt = [trial for trial in self.judged if trial.state == "complete"]
        alive = [trial.layers.depth for trial in learnt if tolerance.degradation(trial) < BROKEN]
        alive += [layers.depth for layers, lost in self._in_full.items() if lost < BROKEN]
        return min(alive, default=self._full.total)

    def agreement(self, rung: float) -> float:
        """Rank correlation of what sets lost at this rung and in longer runs; 1 while too few sets have both.

        Of scores, which chance moves much, or, until enough full runs speak, of mean losses where these agree better.
        """
        short, long = self._lost(rung), self._lost_longer(rung)
        by_score = _agreement(short, long)
        further, longest = self._further_loss(rung), self._further_loss(longer(rung))
        full_runs_speak = len(short.keys() & self._in_full.keys()) >= CHECKED
        if full_runs_speak or len(further.keys() & longest.keys()) < CHECKED:
            return by_score
        return max(by_score, _agreement(further, longest))

    def _lost_longer(self, rung: float) -> dict[LayerSet, float]:
        """Points lost per set in its longest run beyond this rung."""
        lost: dict[LayerSet, float] = {}
        for other in sorted(self._by_rung):
            if other > rung:
                lost |= self._lost(other)
        return lost | self._in_full

    def _lost(self, rung: float) -> dict[LayerSet, float]:
        """Points lost per smaller set at this rung; only where the set and the full model learnt something."""
        baseline = self._baseline(rung)
        return {
            layers: baseline - trial.score
            for layers, trial in self._by_rung.get(rung, {}).items()
            if baseline is not None and trial.score is not None and trial.state == "complete" and not layers.is_full
        }

    def _further_loss(self, rung: float) -> dict[LayerSet, float]:
        """Mean loss per example at this rung of the sets in ``_lost``, as far as it was recorded."""
        losses = {layers: self._by_rung[rung][layers].metrics.get("loss") for layers in self._lost(rung)}
        return {layers: loss for layers, loss in losses.items() if loss is not None}

    def _checking(self, rung: float) -> list[LayerSet]:
        """The sets to run twice as long: spread evenly over the ranking, while too few sets have both."""
        lost = self._lost(rung)
        if longer(rung) > LONGEST_CHECKING_RUNG or len(lost) < SCREENS_BEFORE_CHECK:
            return []
        if len(lost.keys() & self._lost(longer(rung)).keys()) >= CHECKED:
            return []
        ranked = sorted(lost, key=lambda layers: (-lost[layers], layers))
        step = (len(ranked) - 1) / (CHECKED - 1)
        return [ranked[round(step * position)] for position in range(CHECKED)]

    def _baseline(self, rung: float) -> float | None:
        trial = self._by_rung.get(rung, {}).get(self._full)
        return None if trial is None else trial.score

    def _baseline_collapsed(self, rung: float) -> bool:
        trial = self._by_rung.get(rung, {}).get(self._full)
        return trial is not None and trial.state != "complete"


def longer(rung: float) -> float:
    """The next rung: twice as long, the full recipe at the most."""
    return min(FULL_RUNG, 2 * rung)


def _lost_in_full(history: Sequence[Trial], full: LayerSet) -> dict[LayerSet, float]:
    """Mean points lost per smaller set in its confirmations, seed by seed against the baseline's."""
    baseline = {
        trial.key.seed: trial.score for trial in history if trial.split == "certification" and trial.layers == full
    }
    lost: dict[LayerSet, list[float]] = {}
    for trial in history:
        reference = baseline.get(trial.key.seed)
        if trial.split == "certification" and trial.layers != full and None not in (trial.score, reference):
            assert trial.score is not None and reference is not None
            lost.setdefault(trial.layers, []).append(reference - trial.score)
    return {layers: statistics.fmean(values) for layers, values in lost.items()}


def _agreement(short: Mapping[LayerSet, float], long: Mapping[LayerSet, float]) -> float:
    """Rank correlation over the sets that both have; 1 while these are too few."""
    both = [layers for layers in short if layers in long]
    if len(both) < CHECKED:
        return 1.0
    return _rank_correlation([short[layers] for layers in both], [long[layers] for layers in both])


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's; 0 where one side is constant and nothing can be ranked."""
    if len(set(first)) == 1 or len(set(second)) == 1:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)
