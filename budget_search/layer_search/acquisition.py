"""Which layer set to confirm next, and whether any is worth it: what a layer less is worth against what it costs.

Candidates stand on a ladder, one for each depth: the one likeliest to hold. Whether they hold hangs together, since the
surrogate may be wrong about all of them in the same way, so what one confirmation would show of the others is counted
in joint draws from it. The best order to try them in is then a small dynamic programme over the depths that are still
open: those above the deepest one that failed and below the answer so far.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from scipy import stats

from budget_search.core.layers import LayerSet
from budget_search.layer_search.surrogate import FullRuns, Surrogate

LAYER_WORTH, ANSWER_WORTH = 2.0, 2.0
"""What one layer less is worth, and that there is an answer at all, in full fine-tune equivalents: the choice between
a cheap search and a small answer."""
FAILING_SHARE = 0.55
"""The share of its runs that a set takes on average which does not hold."""
# The best of many sets looks better than it is: it is expected to lose this many standard deviations more.
CAUTION = 0.4
DRAWS = 1000
# A full score varies by seed; a difference of two, run with the same seed, by this many times its variance.
PAIRED = 1.5
# Models this deep or less have all their sets considered; of deeper ones a sample around what was measured.
EXHAUSTIBLE = 13
SAMPLED_PER_DEPTH = 400


@dataclass(frozen=True)
class ConfirmationRule:
    """How sets are confirmed: within ``delta`` points in the mean over ``seeds`` runs, whose scores spread by
    ``seed_sd`` points; ``begun`` holds what the sets in hand lost so far."""

    delta: float
    seed_sd: float
    seeds: int
    begun: Mapping[LayerSet, FullRuns]

    def runs_left(self, layers: LayerSet) -> int:
        return self.seeds - (self.begun[layers].runs if layers in self.begun else 0)

    def may_lose(self, layers: LayerSet) -> float:
        """Points that the runs still to come may lose in the mean."""
        if layers not in self.begun:
            return self.delta
        begun = self.begun[layers]
        return (self.delta * self.seeds - begun.lost * begun.runs) / self.runs_left(layers)

    def noise(self, layers: LayerSet) -> float:
        """Standard deviation of the mean of the runs still to come."""
        return float(np.sqrt(PAIRED * self.seed_sd**2 / self.runs_left(layers)))


def chances(surrogate: Surrogate, sets: Sequence[LayerSet], rule: ConfirmationRule) -> np.ndarray:
    """The probability that each set will be confirmed; (sets,)."""
    mean, sd = surrogate.expect(sets)
    allowed = np.full(len(sets), rule.delta)
    noise = np.full(len(sets), np.sqrt(PAIRED * rule.seed_sd**2 / rule.seeds))
    for index, layers in enumerate(sets):
        if layers in rule.begun:
            allowed[index], noise[index] = rule.may_lose(layers), rule.noise(layers)
    return np.asarray(stats.norm.cdf((allowed - mean - CAUTION * sd) / np.sqrt(sd**2 + noise**2)))


def choose(
    surrogate: Surrogate, sets: Sequence[LayerSet], rule: ConfirmationRule, answer_depth: int, tries: int
) -> LayerSet | None:
    """The set to run next of those with fewer layers than the answer so far, when so many may be tried; None when none
    is worth its price."""
    ladder = _likeliest_by_depth(sets, chances(surrogate, sets, rule))
    if not ladder:
        return None
    total = ladder[0].total
    prices = [rule.runs_left(layers) * layers.depth / total for layers in ladder]
    holds = _draws(surrogate, ladder, rule)
    worths = [LAYER_WORTH * (answer_depth - layers.depth) for layers in ladder]
    best = _best_first(worths, prices, holds, 0.0 if answer_depth < total else ANSWER_WORTH, tries)
    return None if best is None else ladder[best]


def _likeliest_by_depth(sets: Sequence[LayerSet], chance: np.ndarray) -> list[LayerSet]:
    """By depth, ascending."""
    best: dict[int, tuple[float, LayerSet]] = {}
    for layers, probability in zip(sets, chance.tolist(), strict=True):
        if layers.depth not in best or probability > best[layers.depth][0]:
            best[layers.depth] = (probability, layers)
    return [best[depth][1] for depth in sorted(best)]


def _draws(surrogate: Surrogate, sets: Sequence[LayerSet], rule: ConfirmationRule) -> np.ndarray:
    """Whether each set is confirmed, in joint draws of the truth and the runs to come; (sets, draws)."""
    random = np.random.default_rng(0)
    _, sd = surrogate.expect(sets)
    lost = surrogate.draw(sets, random, DRAWS) + CAUTION * sd[:, None]
    noise = np.array([rule.noise(layers) for layers in sets])
    lost += noise[:, None] * random.standard_normal(lost.shape)
    return np.asarray(lost <= np.array([[rule.may_lose(layers)] for layers in sets]))


def _best_first(
    worths: Sequence[float], prices: Sequence[float], holds: np.ndarray, any_answer: float, tries: int
) -> int | None:
    """Which rung of the ladder to try first, so that what is won less what the tries cost is expected to be most.

    ``worths`` are of the rungs beside the answer so far, the shallowest first; ``any_answer`` is what the first rung
    that holds is worth beside that. State: ``low``, the deepest rung that failed (-1: none), and ``high``, the
    shallowest that held (the number of rungs: the answer so far), and the tries left. Only rungs between the two are
    still worth one.
    """
    won = [*(worth + any_answer for worth in worths), 0.0]

    @cache
    def value(low: int, high: int, tries: int) -> tuple[float, int | None]:
        known = np.ones(holds.shape[1], dtype=bool)
        if low >= 0:
            known &= ~holds[low]
        if high < len(worths):
            known &= holds[high]
        best: tuple[float, int | None] = (0.0, None)
        for rung in range(low + 1, high if tries else 0):
            chance = float(holds[rung][known].mean()) if known.any() else 0.0
            price = prices[rung] * (chance + FAILING_SHARE * (1 - chance))
            worth = -price
            if chance > 0:
                worth += chance * (won[rung] - won[high] + value(low, rung, tries - 1)[0])
            if chance < 1:
                worth += (1 - chance) * value(rung, high, tries - 1)[0]
            best = max(best, (worth, rung), key=lambda pair: pair[0])
        return best

    return value(-1, len(worths), tries)[1]


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
