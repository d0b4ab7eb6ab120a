"""Statistics of paired results: the estimated degradation of a layer set, its upper bound, and the verdict.

A measured degradation varies with the seeds and with the examples. Every layer set is scored with the baseline's seeds
on the baseline's examples. Pairing the examples makes the bound narrow. The bound takes the seeds as independent, so it
does not rely on a seed having the same effect on all sets. All figures are in points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from budget_search.core.config import Criterion, Verdict
from budget_search.core.formatting import plural
from budget_search.core.layers import LayerSet

POINTS = 100.0
"""The contribution of a correct example, in points; that of a wrong one is 0."""
PRIOR_SEED_SD = 0.5
"""Prior standard deviation of a score between seeds, in points."""
PRIOR_DEGREES_OF_FREEDOM = 4
"""Weight of that prior beside measured scores."""
DISCORDANT = 0.01
"""Expected share of examples on which an equally good set and the baseline differ with every seed."""

INTERIM_SHARE = 0.1
"""Share of a candidate's error that goes to the looks at its bound before the last."""


@dataclass(frozen=True)
class Judgement:
    """The comparison of a layer set with the baseline: the estimated degradation and the two parts of its variance.

    ``degradation`` is the mean over seeds of baseline score minus score, in points. ``seed_variance`` and
    ``example_variance`` are the variances (points squared) that the choice of seeds and of examples gives to that
    estimate. The first has ``seed_degrees_of_freedom`` degrees of freedom, the second ``examples - 1``. With one seed
    ``seed_variance`` is None, so there is no bound and nothing is certified. ``collapsed`` is the number of runs, of
    the set and of the baseline, that predicted a single class. They count in the mean but prevent certification,
    because the bound assumes normal noise and a collapse is not that.
    """

    degradation: float
    seed_variance: float | None
    example_variance: float
    seed_degrees_of_freedom: int
    seeds: int
    examples: int
    confidence: float = 0.95
    collapsed: int = 0

    @property
    def variance(self) -> float | None:
        """Variance of ``degradation``, in points squared; None with one seed."""
        return None if self.seed_variance is None else self.seed_variance + self.example_variance

    @property
    def seed_share(self) -> float | None:
        """The share of ``variance`` that is due to the seeds; None with one seed, and where there is no variance."""
        return self.seed_variance / self.variance if self.seed_variance is not None and self.variance else None

    @property
    def degrees_of_freedom(self) -> float | None:
        """Degrees of freedom of ``variance`` (Satterthwaite); None with one seed."""
        if self.seed_variance is None:
            return None
        return satterthwaite(self.seed_variance, self.seed_degrees_of_freedom, self.example_variance, self.examples - 1)

    @property
    def upper(self) -> float | None:
        """One-sided upper confidence bound of the true degradation at level ``confidence``; None with one seed."""
        if self.variance is None or self.degrees_of_freedom is None:
            return None
        return self.degradation + float(special.stdtrit(self.degrees_of_freedom, self.confidence)) * math.sqrt(
            self.variance
        )

    def certified(self, delta: float) -> bool:
        """Whether the upper bound is at most delta (points) and no run collapsed."""
        return self.upper is not None and self.upper <= delta and not self.collapsed


def judge(
    baseline: np.ndarray,
    candidates: Mapping[LayerSet, np.ndarray],
    confidence: float = 0.95,
    others: Sequence[np.ndarray] = (),
    weight: float = POINTS,
) -> dict[LayerSet, Judgement]:
    """Compare layer sets with the baseline on the same examples and with the same seeds.

    Every array has shape (seeds, examples) and holds the contribution of each example to the score, in points: 100 or
    0 for accuracy, score plus influence for other metrics, so the mean of a row is the score of that seed. Row s of
    all arrays belongs to the same seed, column i to the same example. A single column holds the scores themselves; the
    bound then counts the seeds alone. ``others`` are the scores of further sets, each (seeds,) with any number of
    seeds. ``weight`` is the least that an example of the rarest class contributes, in points; the arrays show it only
    if a model missed one.

    The seed variance of a set is the larger of its own estimate and of the estimate pooled over all sets. Its own is
    often too small by chance; the pooled one is too small for a set whose scores vary more than those of others.

    Raises ValueError for arrays of other shapes or without examples.
    """
    baseline = _checked(baseline)
    arrays = {layers: _checked(array, like=baseline) for layers, array in candidates.items()}
    seeds, examples = baseline.shape
    scores = [baseline.mean(axis=1), *(array.mean(axis=1) for array in arrays.values()), *others]
    pooled = pooled_seed_variance(scores) if seeds > 1 else None
    judgements = {}
    for layers, array in arrays.items():
        difference = baseline - array
        per_seed = difference.mean(axis=1)
        judgements[layers] = Judgement(
            degradation=float(per_seed.mean()),
            seed_variance=None if pooled is None else max(float(per_seed.var(ddof=1)), pooled) / seeds,
            example_variance=example_variance(difference, max(weight, largest_weight(baseline, array))),
            seed_degrees_of_freedom=sum(len(each) - 1 for each in scores),
            seeds=seeds,
            examples=examples,
            confidence=confidence,
        )
    return judgements


def judge_checkpoint(
    baseline: np.ndarray, checkpoint: np.ndarray, confidence: float = 0.95, weight: float = POINTS
) -> Judgement:
    """Compare one trained checkpoint with the baseline's mean over seeds.

    ``baseline`` has shape (seeds, examples), ``checkpoint`` has shape (examples,), both in points. Only the baseline
    varies between seeds, because the checkpoint is fixed. ``weight`` is as in ``judge``. Raises ValueError for arrays
    of other shapes.
    """
    baseline = _checked(baseline)
    seeds, examples = baseline.shape
    fixed = _checked(np.broadcast_to(checkpoint, baseline.shape), like=baseline)
    difference = baseline - fixed
    per_seed = difference.mean(axis=1)
    return Judgement(
        degradation=float(per_seed.mean()),
        seed_variance=float(per_seed.var(ddof=1)) / seeds if seeds > 1 else None,
        example_variance=example_variance(difference, max(weight, largest_weight(baseline, fixed))),
        seed_degrees_of_freedom=seeds - 1,
        seeds=seeds,
        examples=examples,
        confidence=confidence,
    )


def pooled_seed_variance(scores: Sequence[np.ndarray]) -> float:
    """Variance between seeds of the difference of two sets, from the ``scores`` of every set, each (seeds,).

    ``scores`` includes the baseline; at least one set has two seeds. The result is twice the pooled variance of a
    score, which treats the seeds of two sets as independent: the mean of the sets' variances, weighted by their degrees
    of freedom. Estimating a common effect of each seed (a two-way layout, sets + seeds) would cost degrees of freedom;
    with two or three sets the bound then failed too often.
    """
    several = [each for each in scores if len(each) > 1]
    variances = [each.var(ddof=1) for each in several]
    return float(2 * np.average(variances, weights=[len(each) - 1 for each in several]))


def largest_weight(*contributions: np.ndarray) -> float:
    """The most points that one example adds to a score, from arrays (seeds, examples) or (examples,).

    100 for accuracy. With F1 or the Matthews correlation, an example of a rare class weighs many times as much, which
    the range of the contributions shows. Contributions with few distinct values are those of class predictions;
    numerical predictions all change a little with every model, so no example is missed, and 100 is returned.
    """
    widest = max(contributions, key=np.ptp)
    predicts_classes = len(np.unique(widest[-1] if widest.ndim > 1 else widest)) <= widest.shape[-1] / 2
    return max(POINTS, float(np.ptp(widest))) if predicts_classes else POINTS


def example_variance(difference: np.ndarray, weight: float = POINTS) -> float:
    """Variance of the mean of ``difference`` (seeds, examples) due to the choice of examples, in points squared.

    This is the variance over examples of the mean over seeds, without the part due to the seeds (known from two seeds
    on), divided by the number of examples. One pseudo-count is added, as if half an example more had been lost and
    half an example more won, each of ``weight`` points (see ``largest_weight``): a few changed examples estimate their
    true rate badly. Zero for a single column (the scores themselves), which has no information about examples.
    """
    seeds, examples = difference.shape
    if examples == 1:
        return 0.0
    variance = float(difference.mean(axis=0).var(ddof=1))
    if seeds > 1:
        variance -= float(difference.var(axis=0, ddof=1).mean()) / seeds
    return float(max(variance, 0.0) / examples + (weight / examples) ** 2)


def satterthwaite(first: float, first_freedom: float, second: float, second_freedom: float) -> float:
    """Degrees of freedom of the sum of two variance estimates (Welch-Satterthwaite); one of zero adds nothing."""
    if not second:
        return first_freedom
    return (first + second) ** 2 / (first**2 / first_freedom + second**2 / second_freedom)


def verdict_word(
    answer: LayerSet,
    delta: float,
    judgement: Judgement | None,
    *,
    criterion: Criterion = "observed",
    held_out_degradation: float | None = None,
    smallest_certifiable: float | None = None,
) -> Verdict:
    """The verdict on an answer to delta (points): the first that applies.

    ``judgement`` belongs to the answer (None for the full model). ``smallest_certifiable`` is in points, None if no
    delta can be certified; it explains a full model under criterion ``certified``. With one seed nothing is certified.
    Raises ValueError for a smaller answer whose mean degradation exceeds delta.
    """
    if answer.is_full:
        beyond_reach = smallest_certifiable is None or delta < smallest_certifiable
        return "cannot be resolved" if criterion == "certified" and beyond_reach else "full model"
    if judgement is None or judgement.degradation > delta:
        raise ValueError(f"layers {answer} do not hold within {delta} points: they cannot be the answer")
    if held_out_degradation is not None and held_out_degradation > delta:
        return "held_out disagrees"
    if judgement.certified(delta):
        return "certified"
    return "likely" if criterion == "likely" else "observed"


@dataclass(frozen=True)
class Resolution:
    """The smallest delta (points) that can be certified, None with one seed, and a sentence on how to reduce it."""

    smallest_certifiable_delta: float | None
    explanation: str


def share_of_error(position: int) -> float:
    """The share of the error allowed for a delta that the candidate at this position may use.

    Every candidate gets half of the remainder, so the shares sum to at most 1. By Bonferroni's inequality the joint
    error then stays within the level, also for dependent candidates. From the fortieth candidate on the shares stay
    equal, at 1e-12, because one minus a smaller error would be rounded to 1; what they add to the sum is negligible.
    """
    return 0.5 ** (1 + min(position, 39))


def share_of_look(look: int, looks: int) -> float:
    """The share of a candidate's error that its bound may use after ``look`` of at most ``looks`` further seeds.

    Without further seeds there is one look. Else the looks before the last share ``INTERIM_SHARE`` equally.
    """
    if not looks:
        return 1.0
    return INTERIM_SHARE / looks if look < looks else 1 - INTERIM_SHARE


def resolution(
    examples: int,
    seeds: int,
    scores: Sequence[Sequence[float]] = (),
    *,
    confidence: float = 0.95,
    further: int = 0,
    weight: float = POINTS,
) -> Resolution:
    """The smallest delta that the first candidate can be certified for, given the split's size and number of seeds.

    ``scores`` are the known scores on the certification split, in points: per layer set, the baseline first, one score
    per seed. ``examples`` is 1 where scores are known but not those of single examples. With ``further`` seeds it is
    the delta of the last look. ``weight`` is as in ``judge``.
    """
    given, seeds = seeds, seeds + further
    if seeds < 2:
        return Resolution(None, "One seed gives no variance between seeds, so nothing can be certified: use 3 or more.")
    spread = expected_seed_sd(*scores)
    level = 1 - (1 - confidence) * share_of_error(0) * share_of_look(further, further)

    def reach(seeds: int, examples: int) -> float:
        return smallest_certifiable_delta(
            examples, seeds, spread, candidates=max(1, len(scores) - 1), confidence=level, weight=weight
        )

    now, with_more_examples = reach(seeds, examples), reach(seeds, 4 * examples)
    # With few seeds, more examples can even widen the bound: fewer degrees of freedom remain.
    more = "; more examples alone would not help" if examples > 1 else ""
    if examples > 1 and with_more_examples < now:
        more = f", {4 * examples:,} examples to {with_more_examples:.2f}"
    size = f" and {examples:,} certification examples," if examples > 1 else ", from the variance between seeds alone,"
    more_seeds = f" and {further} further ones" if further else ""
    origin = "measured" if any(len(each) > 1 for each in scores) else "assumed"
    return Resolution(
        now,
        f"With {plural(given, 'seed')}{more_seeds}{size} a layer set as good as the baseline can be "
        f"certified for {now:.2f} points or more (standard deviation between seeds: "
        f"{spread:.2f}, {origin}). {seeds + 2} seeds would reduce that to {reach(seeds + 2, examples):.2f}{more}.",
    )


def smallest_certifiable_delta(
    examples: int,
    seeds: int,
    seed_sd: float = PRIOR_SEED_SD,
    discordant: float = DISCORDANT,
    *,
    candidates: int = 1,
    confidence: float = 0.95,
    weight: float = POINTS,
) -> float:
    """Width of the one-sided bound (points) for a set that is as good as the baseline; infinite with one seed.

    ``seed_sd`` is the standard deviation of one model's score between seeds, in points; the seeds of two models are
    treated as independent. ``discordant`` is the share of examples on which the two differ with every seed; one of
    them contributes 100 points, except for one of the rarest class, which contributes ``weight``. The
    measured degradation of such a set is about zero, so at this delta it is certified about every second time.
    """
    if seeds < 2:
        return math.inf
    seed_variance = 2 * seed_sd**2 / seeds
    example_variance = discordant * POINTS**2 / examples + (weight / examples) ** 2 if examples > 1 else 0.0
    degrees_of_freedom = satterthwaite(seed_variance, (candidates + 1) * (seeds - 1), example_variance, examples - 1)
    return float(special.stdtrit(degrees_of_freedom, confidence)) * math.sqrt(seed_variance + example_variance)


def expected_seed_sd(*scores: Sequence[float]) -> float:
    """Standard deviation of a score between seeds (points), from the scores of one or more sets and a prior.

    The prior matters because two or three seeds estimate a variance badly. Used for predictions only: the bound of a
    ``Judgement`` uses measured scores alone.
    """
    squares = sum(float(((np.asarray(each) - np.mean(each)) ** 2).sum()) for each in scores if each)
    degrees_of_freedom = sum(max(0, len(each) - 1) for each in scores)
    prior = PRIOR_DEGREES_OF_FREEDOM
    return math.sqrt((prior * PRIOR_SEED_SD**2 + squares) / (prior + degrees_of_freedom))


def _checked(array: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != 2 or not array.size or (like is not None and array.shape != like.shape):
        raise ValueError(f"expected arrays of one shape (seeds, examples), received {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("the contributions to a score must be finite numbers")
    return array
