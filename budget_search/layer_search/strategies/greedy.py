"""Backward elimination: try to drop each remaining layer, let the one go that hurts least, and again.

The search of Greedy-layer pruning (Peer et al., 2021), which needs L(L+1)/2 evaluations to the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from budget_search.core.layers import LayerSet
from budget_search.core.trial import Tolerance, Trial
from budget_search.layer_search.strategies.problem import SearchProblem


def propose(history: Sequence[Trial], problem: SearchProblem) -> list[LayerSet]:
    """The rest of the current round, all at once; finished after the first round in which nothing holds.

    Greedy-layer pruning itself goes on to a given depth. Here the problem is how far delta reaches, and a set built
    on one that already fails is no way to a set that holds. Layers that must go are gone from the start; sets that
    are too large for the limits are steps on the way, as the full model is.
    """
    measured = {trial.layers: trial for trial in history}
    start = LayerSet.dropping(problem.limits.drop, problem.total)
    candidates = children(start, problem) if start.is_full else [start]
    while candidates:
        if missing := [layers for layers in candidates if layers not in measured]:
            return missing
        best = least_harmful([measured[layers] for layers in candidates], problem.tolerance)
        if not problem.tolerance.allows(best):
            break
        candidates = children(best.layers, problem)
    return []


def children(layers: LayerSet, problem: SearchProblem) -> list[LayerSet]:
    """The sets with one layer less that keep what is fixed."""
    return [child for child in layers.smaller() if problem.fixed.issubset(child.kept)]


def least_harmful(candidates: Sequence[Trial], tolerance: Tolerance) -> Trial:
    """The trial that degrades least, of sets that each lack one layer of the same parent.

    Scores are compared unrounded. Of equal ones the lowest loss wins if all of them recorded it, then the set that
    dropped the highest layer, because upper layers are the cheaper ones to lose (Poor Man's BERT, 4.1).
    """
    least = min(tolerance.degradation(trial) for trial in candidates)
    tied = [trial for trial in candidates if tolerance.degradation(trial) == least]
    if all("loss" in trial.metrics for trial in tied):
        lowest = min(trial.metrics["loss"] for trial in tied)
        tied = [trial for trial in tied if trial.metrics["loss"] == lowest]
    # Of siblings, the smallest tuple of kept layers is the one that lacks the highest.
    return min(tied, key=lambda trial: trial.layers.kept)
