"""What the screens of a study say, each against the baseline of its own rung, and how long a screen must be.

A screen is worth its price only when its ranking agrees with longer runs. That is checked as the search goes: some
sets are screened twice as long, and where the ranking differs, all later screens are that long.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from scipy import stats

from budget_search.layers import LayerSet
from budget_search.trial import FULL_RUNG, Tolerance, Trial

# Screens of one rung before it is checked, and how many of them are run twice as long for it.
SCREENS_BEFORE_CHECK = 8
CHECKED = 5
# Rank correlation of the checked screens with their longer runs below which screens become longer.
AGREEMENT = 0.5
# Beyond this, checking would cost as much as confirming.
LONGEST_CHECKED_RUNG = 0.5


class Screens:
    """A view of a study's history: pure, made anew whenever the history has grown."""

    def __init__(self, history: Sequence[Trial], total: int, first_rung: float) -> None:
        self._total = total
        self._first_rung = first_rung
        self._by_rung: dict[float, dict[LayerSet, Trial]] = {}
        for trial in sorted(history, key=lambda trial: trial.key):
            if trial.split == "selection" and not trial.machine_failure:
                self._by_rung.setdefault(trial.rung, {})[trial.layers] = trial

    @cached_property
    def rung(self) -> float:
        """The rung of the next screens: the first at which the full model learns and the ranking is not refuted."""
        rung = self._first_rung
        while rung < FULL_RUNG and (self._baseline_collapsed(rung) or self.agreement(rung) < AGREEMENT):
            rung = longer(rung)
        return rung

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
        """``delta`` in points, against the baseline of every rung in use."""
        baselines = {rung: self._baseline(rung) for rung in self._by_rung}
        return Tolerance(delta, {rung: score for rung, score in baselines.items() if score is not None})

    def doubtful(self) -> list[tuple[LayerSet, float]]:
        """Screens to run longer: (layer set, rung), with the full model wherever a rung is new.

        These are sets whose screen collapsed, which says that it was too short rather than that the set is bad, and
        the sets that check the current rung.
        """
        wanted = [
            (trial.layers, longer(trial.rung))
            for trial in self.judged
            if trial.state == "collapsed" and trial.rung < FULL_RUNG
        ]
        wanted += [(layers, longer(self.rung)) for layers in self._checking(self.rung)]
        missing = [pair for pair in wanted if pair[0] not in self._by_rung.get(pair[1], {})]
        full = LayerSet.full(self._total)
        rungs = {self.rung, *(rung for _, rung in missing)}
        return [(full, rung) for rung in sorted(rungs) if full not in self._by_rung.get(rung, {})] + missing

    def agreement(self, rung: float) -> float:
        """Rank correlation of this rung's screens with runs twice as long; 1 while too few sets have both."""
        both = self._checked(rung)
        if len(both) < CHECKED:
            return 1.0
        longer_runs = self._by_rung[longer(rung)]
        return _rank_correlation(
            [_worth(self._by_rung[rung][layers]) for layers in both], [_worth(longer_runs[layers]) for layers in both]
        )

    def _checked(self, rung: float) -> list[LayerSet]:
        """The sets that learnt something at this rung and were also run twice as long."""
        longer_runs = self._by_rung.get(longer(rung), {})
        return [layers for layers in self._usable(rung) if layers in longer_runs]

    def _checking(self, rung: float) -> list[LayerSet]:
        """The sets to run twice as long: spread evenly over the ranking, while too few sets have both."""
        usable = self._usable(rung)
        if longer(rung) > LONGEST_CHECKED_RUNG or len(usable) < SCREENS_BEFORE_CHECK:
            return []
        if len(self._checked(rung)) >= CHECKED:
            return []
        ranked = sorted(usable, key=lambda layers: (_worth(self._by_rung[rung][layers]), layers))
        step = (len(ranked) - 1) / (CHECKED - 1)
        return [ranked[round(step * position)] for position in range(CHECKED)]

    def _usable(self, rung: float) -> list[LayerSet]:
        return [
            layers
            for layers, trial in self._by_rung.get(rung, {}).items()
            if trial.state == "complete" and not layers.is_full
        ]

    def _baseline(self, rung: float) -> float | None:
        trial = self._by_rung.get(rung, {}).get(LayerSet.full(self._total))
        return None if trial is None else trial.score

    def _baseline_collapsed(self, rung: float) -> bool:
        trial = self._by_rung.get(rung, {}).get(LayerSet.full(self._total))
        return trial is not None and trial.state != "complete"


def longer(rung: float) -> float:
    """The next rung: twice as long, the full recipe at the most."""
    return min(FULL_RUNG, 2 * rung)


def _worth(trial: Trial) -> float:
    return float("-inf") if trial.score is None else trial.score


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's; 0 where one side is constant and nothing can be ranked."""
    if len(set(first)) == 1 or len(set(second)) == 1:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)
