"""Backward elimination: measure every drop of one layer, keep the best set, and repeat from there.

This is the search of Greedy-layer pruning (Peer et al., 2021). All rounds together take L(L+1)/2 evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence

from budget_search.core.layers import LayerSet
from budget_search.core.trial import Tolerance, Trial
from budget_search.layer_search.strategies.problem import SearchProblem


def propose(history: Sequence[Trial], problem: SearchProblem) -> list[LayerSet]:
    """The unmeasured sets of the current round; finished after the first round in which no set holds.

    The paper continues to a given depth. Here the search ends at delta, because smaller sets made from a set that fails
    are unlikely to hold. Layers that must be dropped are dropped from the start. Sets that are too large for the limits
    are measured as intermediate steps.
    """
    measured = {trial.layers: trial for trial in history}
    start = LayerSet.dropping(problem.limits.drop, problem.total)
    candidates = children(start, problem) if start.is_full else [start]
    while candidates:
        if missing := [layers for layers in candidates if layers not in measured]:
            return missing
        best = lowest_degradation([measured[layers] for layers in candidates], problem.tolerance)
        if not problem.tolerance.allows(best):
            break
        candidates = children(best.layers, problem)
    return []


def children(layers: LayerSet, problem: SearchProblem) -> list[LayerSet]:
    """The sets with one layer less that keep the fixed layers."""
    return [child for child in layers.smaller() if problem.fixed.issubset(child.kept)]


def lowest_degradation(candidates: Sequence[Trial], tolerance: Tolerance) -> Trial:
    """The trial with the lowest degradation, of sets that each drop one more layer from the same set.

    Scores are not rounded. Ties go to the lowest loss if all trials recorded one, then to the set that drops the
    highest layer, because upper layers matter less (Poor Man's BERT, 4.1).
    """
    least = min(tolerance.degradation(trial) for trial in candidates)
    tied = [trial for trial in candidates if tolerance.degradation(trial) == least]
    if all("loss" in trial.metrics for trial in tied):
        lowest = min(trial.metrics["loss"] for trial in tied)
        tied = [trial for trial in tied if trial.metrics["loss"] == lowest]
    # The set that drops the highest layer has the smallest tuple of kept layers.
    return min(tied, key=lambda trial: trial.layers.kept)
