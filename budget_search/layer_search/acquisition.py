"""The acquisition function: which layer set to confirm next, and whether any confirmation is worth its cost.

For each depth there is one candidate, the set most likely to hold. Whether candidates hold is correlated, because an
error of the surrogate affects all of them, so joint samples from the surrogate tell what the outcome of one
confirmation says about the others. A small dynamic programme over the depths then finds the order of confirmations
with the highest expected utility. Only depths above the deepest candidate that failed and below the current answer
matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from scipy import special

from budget_search.core.config import RECIPES, Recipe
from budget_search.core.dropping import training_depth
from budget_search.core.layers import LayerSet
from budget_search.layer_search.acceptance import SELECTION_BIAS, AcceptanceRule
from budget_search.layer_search.pool import Pool
from budget_search.layer_search.surrogate import PAIRED_VARIANCE, FullRuns, Surrogate

LAYER_UTILITY, ANSWER_UTILITY = 2.0, 2.0
"""Utility of one layer less and of any answer at all, in full fine-tune equivalents. Higher values make the search more
expensive and its answers smaller."""
FAILING_SHARE = 0.55
"""Mean share of its runs that a set takes until it is rejected."""
SAMPLES = 1000
MAX_ENUMERATED_DEPTH = 13
"""All sets of models up to this depth are considered; of deeper models those near the measured ones, and a sample."""
SAMPLED_PER_DEPTH = 400


@dataclass(frozen=True)
class ConfirmationRule:
    """When a set is expected to be accepted (see ``acceptance``) for ``delta`` points after ``seeds`` runs.

    ``seed_sd`` is the standard deviation of a score between seeds, ``example_variance`` the variance of a mean
    degradation due to the examples, both in points. ``full_runs`` are the runs so far, ``recipe`` is what a run costs.
    """

    delta: float
    seed_sd: float
    seeds: int
    full_runs: Mapping[LayerSet, FullRuns]
    acceptance: AcceptanceRule
    example_variance: float = 0.0
    recipe: Recipe = RECIPES["paper"]

    def required_means(self, expected: np.ndarray, expected_sds: np.ndarray) -> np.ndarray:
        """The mean degradation, in points, up to which sets with these predictions are accepted; (sets,)."""
        variance = 2 * self.seed_sd**2 / self.seeds + self.example_variance
        return self.acceptance.required_means(self.delta, expected, expected_sds, variance)

    def remaining_runs(self, layers: LayerSet) -> int:
        return self.seeds - (self.full_runs[layers].runs if layers in self.full_runs else 0)

    def remaining_cost(self, layers: LayerSet) -> float:
        """The cost of the remaining runs in full fine-tune equivalents."""
        return self.remaining_runs(layers) * training_depth(self.recipe, layers) / layers.total

    def allowed_degradation(self, layers: LayerSet, required_mean: float) -> float:
        """The mean degradation, in points, that the remaining runs may have for this mean over all runs."""
        if layers not in self.full_runs:
            return required_mean
        done = self.full_runs[layers]
        return (required_mean * self.seeds - done.degradation * done.runs) / self.remaining_runs(layers)

    def noise(self, layers: LayerSet) -> float:
        """Standard deviation of the mean of the remaining runs, in points."""
        return float(np.sqrt(PAIRED_VARIANCE * self.seed_sd**2 / self.remaining_runs(layers) + self.example_variance))


def confirmation_probabilities(surrogate: Surrogate, pool: Pool, rule: ConfirmationRule) -> np.ndarray:
    """The probability that each set is confirmed; (sets,)."""
    mean, sd = surrogate.predict_rows(pool.rows)
    allowed = rule.required_means(mean + SELECTION_BIAS * sd, sd)
    noise = np.full(len(mean), np.sqrt(PAIRED_VARIANCE * rule.seed_sd**2 / rule.seeds + rule.example_variance))
    for index, layers in pool.find(rule.full_runs):
        allowed[index], noise[index] = rule.allowed_degradation(layers, allowed[index]), rule.noise(layers)
    return np.asarray(special.ndtr((allowed - mean - SELECTION_BIAS * sd) / np.sqrt(sd**2 + noise**2)))


def choose(surrogate: Surrogate, pool: Pool, rule: ConfirmationRule, answer_depth: int, tries: int) -> LayerSet | None:
    """The set to confirm next, if at most ``tries`` sets may be confirmed; None if no confirmation is worth its cost.

    All sets of the pool have fewer layers than the current answer, which has ``answer_depth``.
    """
    candidates = _most_likely_by_depth(pool, confirmation_probabilities(surrogate, pool, rule))
    if not candidates:
        return None
    total = candidates[0].total
    costs = [rule.remaining_cost(layers) for layers in candidates]
    holds = _sample_outcomes(surrogate, candidates, rule)
    utilities = [LAYER_UTILITY * (answer_depth - layers.depth) for layers in candidates]
    best = _best_first(utilities, costs, holds, 0.0 if answer_depth < total else ANSWER_UTILITY, tries)
    return None if best is None else candidates[best]


def _most_likely_by_depth(pool: Pool, probabilities: np.ndarray) -> list[LayerSet]:
    """The most likely set of every depth, by ascending depth."""
    by_depth = (np.flatnonzero(pool.depths == depth) for depth in np.unique(pool.depths))
    return [pool.sets[positions[probabilities[positions].argmax()]] for positions in by_depth]


def _sample_outcomes(surrogate: Surrogate, sets: Sequence[LayerSet], rule: ConfirmationRule) -> np.ndarray:
    """Whether each set is confirmed, in joint samples of the effects and of the remaining runs; (sets, samples)."""
    random = np.random.default_rng(0)
    mean, sd = surrogate.predict(sets)
    required = rule.required_means(mean + SELECTION_BIAS * sd, sd)
    allowed = [rule.allowed_degradation(layers, each) for layers, each in zip(sets, required.tolist(), strict=True)]
    degradations = surrogate.sample(sets, random, SAMPLES) + SELECTION_BIAS * sd[:, None]
    noise = np.array([rule.noise(layers) for layers in sets])
    degradations += noise[:, None] * random.standard_normal(degradations.shape)
    return np.asarray(degradations <= np.array(allowed)[:, None])


def _best_first(
    utilities: Sequence[float], costs: Sequence[float], holds: np.ndarray, answer_utility: float, tries: int
) -> int | None:
    """The index of the candidate to confirm first for the highest expected utility minus cost; None for no candidate.

    Candidates are sorted by ascending depth. ``utilities`` are relative to the current answer; the first candidate
    that holds adds ``answer_utility``. ``holds`` has shape (candidates, samples).
    """
    gains = [*(utility + answer_utility for utility in utilities), 0.0]
    shares = _conditional_shares(holds).tolist()

    @cache
    def value(failed: int, held: int, tries: int) -> tuple[float, int | None]:
        """The optimal value and first choice, given the deepest candidate that failed (-1: none), the shallowest that
        held (the number of candidates: the current answer) and the tries left."""
        best: tuple[float, int | None] = (0.0, None)
        for index in range(failed + 1, held if tries else 0):
            probability = shares[failed][held][index]
            expected = -costs[index] * (probability + FAILING_SHARE * (1 - probability))
            if probability > 0:
                expected += probability * (gains[index] - gains[held] + value(failed, index, tries - 1)[0])
            if probability < 1:
                expected += (1 - probability) * value(index, held, tries - 1)[0]
            best = max(best, (expected, index), key=lambda pair: pair[0])
        return best

    return value(-1, len(utilities), tries)[1]


def _conditional_shares(holds: np.ndarray) -> np.ndarray:
    """The share of samples in which a candidate holds, of those in which one failed and another held.

    ``holds`` is (candidates, samples). The result is indexed by the failed one (last: none), the one that held (last:
    none) and the candidate; 0 where no sample is left.
    """
    held = np.vstack([holds, np.ones(holds.shape[1], dtype=bool)]).astype(float)
    failed = np.vstack([~holds, np.ones(holds.shape[1], dtype=bool)]).astype(float)
    counts = (failed[:, None, :] * held) @ held.T
    return np.asarray(counts[:, :, :-1] / np.maximum(counts[:, :, -1:], 1))


def candidate_sets(
    total: int, fixed: Collection[int], measured: Sequence[LayerSet], dropped: Collection[int] = ()
) -> list[LayerSet]:
    """The smaller sets to consider that keep the ``fixed`` layers and lack the ``dropped`` ones.

    These are all sets of a shallow model. Of a deep one they are the measured sets, the sets that differ from these by
    one exchanged or one more dropped layer, and a fixed random sample of every depth.
    """
    if total <= MAX_ENUMERATED_DEPTH:
        return list(_all_sets(total, frozenset(fixed), frozenset(dropped)))
    free = [index for index in range(total) if index not in {*fixed, *dropped}]
    sets = dict.fromkeys(layers for layers in measured if not layers.is_full)
    for layers in list(sets):
        for index in (kept for kept in layers.kept if kept in free):
            if layers.depth > 1:
                sets[layers.drop(index)] = None
            exchanged = ({*layers.dropped, index} - {back} for back in layers.dropped)
            sets |= dict.fromkeys(LayerSet.dropping(each, total) for each in exchanged)
    random = np.random.default_rng(total)
    for count in _drop_counts(total, free, dropped):
        for _ in range(SAMPLED_PER_DEPTH):
            more = random.choice(free, count, replace=False).tolist()
            sets[LayerSet.dropping([*dropped, *more], total)] = None
    return [
        layers
        for layers in sets
        if not layers.is_full and set(fixed) <= set(layers.kept) and set(dropped).isdisjoint(layers.kept)
    ]


@lru_cache(maxsize=4)
def _all_sets(total: int, fixed: frozenset[int], dropped: frozenset[int]) -> tuple[LayerSet, ...]:
    free = [index for index in range(total) if index not in fixed | dropped]
    return tuple(
        LayerSet.dropping([*dropped, *more], total)
        for count in _drop_counts(total, free, dropped)
        for more in itertools.combinations(free, count)
    )


def _drop_counts(total: int, free: Sequence[int], dropped: Collection[int]) -> range:
    """How many free layers may be dropped as well: at least one layer is dropped in all, and at least one is kept."""
    return range(0 if dropped else 1, min(len(free), total - 1 - len(dropped)) + 1)
