"""Strategies that ignore scores: the fixed families of Poor Man's BERT at every depth, and its contribution order.

The paper measures each of them for every number K of dropped layers (its Table 2). The answer is the largest K whose
degradation is within delta; a larger set that fails does not rule out a smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from budget_search.core.errors import UsageError
from budget_search.core.layers import FAMILIES, LayerSet
from budget_search.core.trial import Trial
from budget_search.layer_search.strategies.problem import SearchProblem, Strategy, unmeasured

THRESHOLDS = (0.95, 0.925, 0.9)
"""Similarities above which the paper drops a layer (section 4)."""


def family(name: str) -> Strategy:
    """The strategy that measures one fixed family at every depth it is defined for, deepest first."""

    def propose(history: Sequence[Trial], problem: SearchProblem) -> list[LayerSet]:
        depths = range(1, problem.total)
        return unmeasured((each for k in depths for each in family_set(name, k, problem)), history, problem)

    propose.__doc__ = FAMILIES[name].__doc__
    return propose


def family_set(name: str, dropped: int, problem: SearchProblem) -> Iterator[LayerSet]:
    """A family's set, with the fixed layers added and the layers removed that must be dropped.

    Yields nothing if no layer is left or the family is not defined for this number.
    """
    layers = FAMILIES[name](problem.total, dropped)
    kept = set() if layers is None else problem.fixed.union(layers.kept) - problem.limits.drop
    if kept:
        yield LayerSet(tuple(sorted(kept)), problem.total)


def contribution(history: Sequence[Trial], problem: SearchProblem) -> list[LayerSet]:
    """Drop the layers whose output is most similar to their input (Poor Man's BERT, 2.3).

    First the sets that the paper's thresholds give, then the K most similar layers for every other K; among equally
    similar layers the higher one is dropped first. Raises UsageError without one similarity per layer.
    """
    similarities = problem.similarities
    if similarities is None or len(similarities) != problem.total:
        received = "none" if similarities is None else f"{len(similarities)} of them"
        raise UsageError(f"contribution needs the similarities of all {problem.total} layers, received {received}")
    pinned = problem.limits.drop
    order = sorted({*problem.free, *pinned}, key=lambda index: (index not in pinned, -similarities[index], -index))
    by_threshold = [sum(similarities[index] > threshold for index in order) for threshold in THRESHOLDS]
    counts = [k for k in [*by_threshold, *range(1, len(order) + 1)] if 0 < k < problem.total]
    return unmeasured((LayerSet.dropping(order[:k], problem.total) for k in counts), history, problem)


top, bottom, symmetric = family("top"), family("bottom"), family("symmetric")
odd_alternate, even_alternate = family("odd-alternate"), family("even-alternate")
