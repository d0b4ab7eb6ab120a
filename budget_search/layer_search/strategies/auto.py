"""The default: a balanced first design of sets that drop many layers, then what a surrogate thinks likely to hold.

Single drops say little about how many layers can go together, so none is screened for its own sake; only where no
more than one or two may go anyway do they come first. The order matters less than the surrogate: Thompson sampling, TPE
or the mean in its place gave answers as deep in simulation.
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
"""How much of the first evaluations go into the design."""
LARGEST_DESIGN = 12
DESIGN_FAMILIES = (("top", 1 / 2), ("odd-alternate", 1 / 2), ("even-alternate", 1 / 2), ("top", 1 / 3))
DROPPED_SHARES = (1 / 3, 1 / 2, 5 / 12, 7 / 12)
FEW_DROPPED = 5 / 6
"""Share of the layers above which a design is made of single drops."""
DRAWS = 200
LOOK_BELOW_EVERY = 3
"""Every third screen is one layer shallower than the depth that is expected to hold."""


def propose(history: Sequence[Trial], problem: SearchProblem) -> list[LayerSet]:
    """The design first, then the likeliest unmeasured sets at the boundary of what holds, ``width`` at a time.

    Finished when ``problem.evaluations`` are measured, or no set is left.
    """
    room = min(problem.width, problem.room(history))
    if not room:
        return []
    size = min(LARGEST_DESIGN, max(1, round(DESIGN_SHARE * problem.evaluations)))
    measured = sum(not trial.layers.is_full for trial in history)
    if measured < size:
        gentle = mostly_broken(history, problem)
        designed = design(problem.total, problem.fixed, size, gentle, problem.limits)
        if missing := unmeasured(single_drops(problem) or designed, history, problem):
            return missing[: min(room, size - measured)]
    return at_the_boundary(history, problem)[:room]


def at_the_boundary(history: Sequence[Trial], problem: SearchProblem) -> list[LayerSet]:
    """Unmeasured sets of the shallowest depth at which one is expected to hold, those expected to lose least first; for
    each delta in turn."""
    surrogate = problem.surrogate(history)
    measured = [trial.layers for trial in history]
    pool = unmeasured(problem.sets(measured), history, problem)
    if not pool:
        return []
    deltas = problem.deltas or (problem.delta,)
    rounds, turn = divmod(len(history), len(deltas))
    delta = deltas[turn]
    expected, _ = surrogate.predict(pool)
    holding = [layers.depth for layers, lost in zip(pool, expected, strict=True) if lost <= delta]
    boundary = min(holding, default=problem.total - 1) - (rounds % LOOK_BELOW_EVERY == 0)
    # Where a depth has no unmeasured set left, the nearest depth takes its place.
    order = sorted(range(len(pool)), key=lambda i: (abs(pool[i].depth - boundary), expected[i], pool[i]))
    return [pool[index] for index in order]


def single_drops(problem: SearchProblem) -> list[LayerSet]:
    """Where no more than a sixth of the layers may go, single ones say most; elsewhere none.

    On the published tables of BERT, pairs chosen after all single drops come nearer to the best pair.
    """
    few = problem.among is not None and min(each.depth for each in problem.among) >= FEW_DROPPED * problem.total
    return list(LayerSet.full(problem.total).smaller()) if few else []


def mostly_broken(history: Sequence[Trial], problem: SearchProblem) -> bool:
    """Whether the families that open the design told nothing but that half of the layers is far too few."""
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
    total: int, fixed: frozenset[int], size: int, gentle: bool = False, limits: Limits | None = None
) -> tuple[LayerSet, ...]:
    """Sets that drop a third to more than half of the layers, each layer about equally often, far from each other;
    a ``gentle`` design drops half as many, one with limits as many as these ask for."""
    limits = limits or Limits()
    pinned, fewest = sorted(limits.drop), total - limits.deepest(total)
    free = [index for index in range(total) if index not in fixed | limits.drop]
    sets = [layers for layers in opening_sets(total, fixed) if limits.allow(layers)][:size]
    random = np.random.default_rng(total)
    for turn in range(4 * size):
        if len(sets) >= size:
            break
        share = DROPPED_SHARES[turn % len(DROPPED_SHARES)] / (2 if gentle else 1)
        count = min(max(1, fewest, round(share * total)), len(pinned) + len(free), total - 1) - len(pinned)
        drawn = [sorted([*pinned, *random.choice(free, count, replace=False).tolist()]) for _ in range(DRAWS)]
        known = [set(layers.dropped) for layers in sets]
        times = [sum(index in gone for gone in known) for index in range(total)]
        best = LayerSet.dropping(min(drawn, key=lambda gone: _crowding(tuple(gone), known, times)), total)
        if best not in sets:
            sets.append(best)
    return tuple(sets)


def _crowding(gone: Sequence[int], known: list[set[int]], times: list[int]) -> tuple[int, int, Sequence[int]]:
    """How often these layers are dropped already, then how near they are to the nearest known set."""
    nearness = max((len(other.intersection(gone)) for other in known), default=0)
    return sum(times[index] for index in gone), nearness, gone
