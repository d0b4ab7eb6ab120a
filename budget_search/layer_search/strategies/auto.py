"""The default strategy: a balanced initial design, then the sets that the surrogate expects to be near the boundary.

The design consists of sets that drop many layers, because single drops say little about how many layers can be dropped
together; only if no more than one or two layers may be dropped do single drops come first. After the design the choice
of sets matters less than the surrogate: Thompson sampling and TPE gave answers of the same depth in simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from budget_search.core.layers import FAMILIES, LayerSet
from budget_search.core.limits import Limits
from budget_search.core.trial import Trial
from budget_search.layer_search.strategies.problem import SearchProblem, unmeasured
from budget_search.layer_search.surrogate import BROKEN

DESIGN_SHARE = 0.6
"""Share of the evaluations that the initial design takes."""
LARGEST_DESIGN = 12
DESIGN_FAMILIES = (("top", 1 / 2), ("odd-alternate", 1 / 2), ("even-alternate", 1 / 2), ("top", 1 / 3))
DROPPED_SHARES = (1 / 3, 1 / 2, 5 / 12, 7 / 12)
FEW_DROPPED = 5 / 6
"""If every allowed set keeps at least this share of the layers, the design consists of single drops."""
DRAWS = 200
LOOK_BELOW_EVERY = 3
"""Every third screen is one layer below the boundary."""


def propose(history: Sequence[Trial], problem: SearchProblem) -> list[LayerSet]:
    """The initial design, then unmeasured sets at the boundary, ``width`` at a time.

    Finished when ``problem.evaluations`` sets are measured, or no set is left.
    """
    count = min(problem.width, problem.remaining_evaluations(history))
    if not count:
        return []
    size = min(LARGEST_DESIGN, max(1, round(DESIGN_SHARE * problem.evaluations)))
    measured = sum(not trial.layers.is_full for trial in history)
    if measured < size:
        half_as_many = mostly_broken(history, problem)
        designed = design(problem.total, problem.fixed, size, half_as_many, problem.limits)
        if missing := unmeasured(single_drops(problem) or designed, history, problem):
            return missing[: min(count, size - measured)]
    return at_the_boundary(history, problem, count)


def at_the_boundary(history: Sequence[Trial], problem: SearchProblem, count: int) -> list[LayerSet]:
    """Unmeasured sets, nearest first to the smallest depth at which one is expected to hold; the deltas take turns.

    Sets of equal depth are sorted by expected degradation.
    """
    measured = [trial.layers for trial in history]
    pool = problem.pool(measured)
    pool = pool.where(~pool.among(measured))
    if not pool.sets:
        return []
    deltas = problem.deltas or (problem.delta,)
    rounds, turn = divmod(len(history), len(deltas))
    expected = problem.surrogate(history).expected(pool.rows)
    holding = pool.depths[expected <= deltas[turn]]
    boundary = holding.min(initial=problem.total - 1) - (rounds % LOOK_BELOW_EVERY == 0)
    # If a depth has no unmeasured set left, the nearest depth follows.
    distance = abs(pool.depths - boundary)
    near = np.flatnonzero(distance <= np.sort(distance)[:count][-1])
    order = sorted(near.tolist(), key=lambda i: (distance[i], expected[i], pool.sets[i]))
    return [pool.sets[index] for index in order[:count]]


def single_drops(problem: SearchProblem) -> list[LayerSet]:
    """All single drops if at most a sixth of the layers may be dropped; otherwise none.

    On the published tables of BERT, screening all single drops first led to better pairs.
    """
    few = problem.among is not None and min(each.depth for each in problem.among) >= FEW_DROPPED * problem.total
    return list(LayerSet.full(problem.total).smaller()) if few else []


def mostly_broken(history: Sequence[Trial], problem: SearchProblem) -> bool:
    """Whether the fixed families at the start of the design were mostly broken: they drop too many layers."""
    opening = opening_sets(problem.total, problem.fixed)
    known = [trial for trial in history if trial.layers in opening]
    broken = [t for t in known if t.state != "complete" or problem.tolerance.degradation(t) >= BROKEN]
    return len(known) == len(opening) and 2 * len(broken) > len(known)


@lru_cache
def opening_sets(total: int, fixed: frozenset[int]) -> tuple[LayerSet, ...]:
    named = (FAMILIES[name](total, round(share * total)) for name, share in DESIGN_FAMILIES)
    return tuple(layers for layers in dict.fromkeys(named) if layers is not None and fixed <= set(layers.kept))


@lru_cache
def design(
    total: int, fixed: frozenset[int], size: int, half_as_many: bool = False, limits: Limits | None = None
) -> tuple[LayerSet, ...]:
    """The initial design: sets that drop a third to more than half of the layers and differ from each other.

    Every layer is dropped about equally often. With ``half_as_many`` the sets drop half as many layers; limits may
    require that they drop more.
    """
    limits = limits or Limits()
    pinned, fewest = sorted(limits.drop), total - limits.deepest(total)
    free = [index for index in range(total) if index not in fixed | limits.drop]
    sets = [layers for layers in opening_sets(total, fixed) if limits.allow(layers)][:size]
    random = np.random.default_rng(total)
    for turn in range(4 * size):
        if len(sets) >= size:
            break
        share = DROPPED_SHARES[turn % len(DROPPED_SHARES)] / (2 if half_as_many else 1)
        count = min(max(1, fewest, round(share * total)), len(pinned) + len(free), total - 1) - len(pinned)
        drawn = [sorted([*pinned, *random.choice(free, count, replace=False).tolist()]) for _ in range(DRAWS)]
        earlier = [set(layers.dropped) for layers in sets]
        times = [sum(index in dropped for dropped in earlier) for index in range(total)]
        best = LayerSet.dropping(min(drawn, key=lambda dropped: _imbalance(tuple(dropped), earlier, times)), total)
        if best not in sets:
            sets.append(best)
    return tuple(sets)


def _imbalance(dropped: Sequence[int], earlier: list[set[int]], times: list[int]) -> tuple[int, int, Sequence[int]]:
    """How often the design drops these layers already, then the overlap with its most similar set."""
    overlap = max((len(other.intersection(dropped)) for other in earlier), default=0)
    return sum(times[index] for index in dropped), overlap, dropped
