"""Which layer set to confirm next, and whether any is worth it: by the chance that it will hold.

Thresholds as simulated on truths fitted to published tables: reaching for fewer layers costs runs of small models, and
settling too early costs layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np
from scipy import stats

from budget_search.layers import LayerSet
from budget_search.surrogate import Surrogate

# Without an answer, the shallowest depth with this chance; failing that, the best chance anywhere, if it is no less
# than the second. With an answer, only what is this likely to beat it.
FIRST_CHANCE, LEAST_CHANCE, NEXT_CHANCE = 0.45, 0.15, 0.6
# The best of many sets looks better than it is: it is expected to lose this many standard deviations more.
CAUTION = 0.5
# Models this deep or less have all their sets considered; of deeper ones a sample around what was measured.
EXHAUSTIBLE = 13
SAMPLED_PER_DEPTH = 400


def chances(surrogate: Surrogate, sets: Sequence[LayerSet], delta: float, seed_sd: float, seeds: int) -> np.ndarray:
    """The probability that each set's mean over ``seeds`` fresh runs comes within ``delta`` points; (sets,)."""
    mean, sd = surrogate.expect(sets)
    spread = np.sqrt(sd**2 + 1.5 * seed_sd**2 / seeds)
    return np.asarray(stats.norm.cdf((delta - mean - CAUTION * sd) / spread))


def choose(sets: Sequence[LayerSet], chance: np.ndarray, *, has_answer: bool) -> LayerSet | None:
    """The set to confirm next of those that would improve on the answer so far; None when none is worth it."""
    best: dict[int, tuple[float, LayerSet]] = {}
    for layers, probability in zip(sets, chance.tolist(), strict=True):
        if layers.depth not in best or probability > best[layers.depth][0]:
            best[layers.depth] = (probability, layers)
    wanted = NEXT_CHANCE if has_answer else FIRST_CHANCE
    for depth in sorted(best):
        if best[depth][0] >= wanted:
            return best[depth][1]
    likeliest = max(best.values(), default=(0.0, None), key=lambda pair: pair[0])
    return likeliest[1] if not has_answer and likeliest[0] >= LEAST_CHANCE else None


def all_sets(
    total: int, fixed: Collection[int], measured: Sequence[LayerSet], gone: Collection[int] = ()
) -> list[LayerSet]:
    """The smaller sets to consider: all of a shallow model; of a deep one the measured sets, what differs from them by
    one exchanged or one more dropped layer, and a fixed random sample of every depth. ``fixed`` layers stay, those
    ``gone`` go."""
    if total <= EXHAUSTIBLE:
        return list(_every_set(total, frozenset(fixed), frozenset(gone)))
    free = [index for index in range(total) if index not in {*fixed, *gone}]
    found = dict.fromkeys(layers for layers in measured if not layers.is_full)
    for layers in list(found):
        dropped = layers.dropped
        for index in (kept for kept in layers.kept if kept in free):
            if layers.depth > 1:
                found[layers.drop(index)] = None
            found |= dict.fromkeys(LayerSet.dropping({*dropped, index} - {back}, total) for back in dropped)
    random = np.random.default_rng(total)
    for count in _counts(total, free, gone):
        for _ in range(SAMPLED_PER_DEPTH):
            found[LayerSet.dropping([*gone, *random.choice(free, count, replace=False).tolist()], total)] = None
    return [
        layers
        for layers in found
        if not layers.is_full and set(fixed) <= set(layers.kept) and set(gone).isdisjoint(layers.kept)
    ]


@lru_cache(maxsize=4)
def _every_set(total: int, fixed: frozenset[int], gone: frozenset[int]) -> tuple[LayerSet, ...]:
    free = [index for index in range(total) if index not in fixed | gone]
    return tuple(
        LayerSet.dropping([*gone, *more], total)
        for count in _counts(total, free, gone)
        for more in itertools.combinations(free, count)
    )


def _counts(total: int, free: Sequence[int], gone: Collection[int]) -> range:
    """How many layers may go beside those that must: at least one goes in all, at least one stays."""
    return range(0 if gone else 1, min(len(free), total - 1 - len(gone)) + 1)
