"""What paired results say: a point estimate, an upper bound of the degradation, and the word for an answer.

Two things make a measured degradation uncertain: which seeds were run, and which examples were scored. Every layer set
is scored with the baseline's seeds on the baseline's examples. Pairing the examples is what makes a bound narrow.
Pairing the seeds helps as far as a seed pushes all sets the same way, which the bound does not count on. All figures
are in points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from budget_search.core.config import Criterion, Verdict
from budget_search.core.layers import LayerSet

SCALE = 100.0
"""What one example moves the sum of contributions by when it goes from right to wrong."""
ASSUMED_SEED_SD = 0.5
"""Spread of a score between seeds before any was seen, in points."""
ASSUMED_WEIGHT = 4
"""Degrees of freedom for which that assumption counts beside measured scores."""
DISCORDANT = 0.01
"""Share of the examples on which an equally good set lastingly differs from the baseline."""


@dataclass(frozen=True)
class Judgement:
    """A layer set against the baseline: the estimate, and the variance of that estimate in its two parts.

    ``degradation`` is the mean over seeds of baseline score minus score. ``seed_part`` and ``example_part`` are its
    variances (points squared) from the seeds and from the examples; the first has ``seed_freedom`` degrees of freedom,
    the second ``examples - 1``. With one seed ``seed_part`` is None: the spread between seeds cannot be estimated,
    so there is no bound and nothing is certified. ``collapsed`` counts the runs, the set's and the baseline's, that
    predicted one class only: they count in the mean, and they bar certification, because the bound supposes noise of
    a kind that a collapse is not.
    """

    degradation: float
    seed_part: float | None
    example_part: float
    seed_freedom: int
    seeds: int
    examples: int
    confidence: float = 0.95
    collapsed: int = 0

    @property
    def variance(self) -> float | None:
        """Of the degradation, in points squared."""
        return None if self.seed_part is None else self.seed_part + self.example_part

    @property
    def freedom(self) -> float | None:
        """Degrees of freedom of the variance (Satterthwaite)."""
        if self.seed_part is None:
            return None
        return satterthwaite(self.seed_part, self.seed_freedom, self.example_part, self.examples - 1)

    @property
    def upper(self) -> float | None:
        """Upper bound of the true degradation, one-sided at ``confidence``; None with one seed."""
        if self.variance is None or self.freedom is None:
            return None
        return self.degradation + float(stats.t.ppf(self.confidence, self.freedom)) * math.sqrt(self.variance)

    def probability_within(self, delta: float) -> float | None:
        """How likely the true degradation is at most delta (points), given these results; None with one seed."""
        if self.variance is None or self.freedom is None:
            return None
        return float(stats.t.cdf((delta - self.degradation) / math.sqrt(self.variance), self.freedom))

    def certified(self, delta: float) -> bool:
        """Whether the upper bound is within delta (points), and no run collapsed."""
        return self.upper is not None and self.upper <= delta and not self.collapsed


def judge(
    baseline: np.ndarray, candidates: Mapping[LayerSet, np.ndarray], confidence: float = 0.95
) -> dict[LayerSet, Judgement]:
    """Compare layer sets with the baseline on the same examples under the same seeds.

    Every array is seeds x examples and holds each example's contribution to the score, in points: 100 or 0 for
    accuracy, score plus influence for other metrics, so that the mean of a row is that seed's score. Row s of all
    arrays belongs to the same seed, column i to the same example.

    The seed variance of a difference is the larger of the set's own and of that pooled over all sets: its own alone is
    too often small by luck, the pooled one too small for an unsteady set. The example part is what the differences
    vary by beyond the noise of the seeds, and a little more: as if half an example more had changed each way, since
    few changes tell little of how many there might have been.

    Raises ValueError for arrays of other shapes, or for fewer than two examples.
    """
    baseline = _checked(baseline)
    arrays = {layers: _checked(array, like=baseline) for layers, array in candidates.items()}
    seeds, examples = baseline.shape
    scores = np.array([baseline.mean(axis=1), *(array.mean(axis=1) for array in arrays.values())])
    pooled = pooled_seed_variance(scores)
    judgements = {}
    for layers, array in arrays.items():
        difference = baseline - array
        per_seed = difference.mean(axis=1)
        judgements[layers] = Judgement(
            degradation=float(per_seed.mean()),
            seed_part=None if pooled is None else max(float(per_seed.var(ddof=1)), pooled) / seeds,
            example_part=example_variance(difference),
            seed_freedom=len(scores) * (seeds - 1),
            seeds=seeds,
            examples=examples,
            confidence=confidence,
        )
    return judgements


def judge_checkpoint(baseline: np.ndarray, checkpoint: np.ndarray, confidence: float = 0.95) -> Judgement:
    """Compare one trained model, instead of its recipe, with the baseline's mean over seeds.

    ``baseline`` is seeds x examples, ``checkpoint`` has one contribution per example. Only the baseline's seeds count:
    whatever this model does to an example is lasting. Raises ValueError for arrays of other shapes.
    """
    baseline = _checked(baseline)
    seeds, examples = baseline.shape
    difference = baseline - _checked(np.broadcast_to(checkpoint, baseline.shape), like=baseline)
    per_seed = difference.mean(axis=1)
    return Judgement(
        degradation=float(per_seed.mean()),
        seed_part=float(per_seed.var(ddof=1)) / seeds if seeds > 1 else None,
        example_part=example_variance(difference),
        seed_freedom=seeds - 1,
        seeds=seeds,
        examples=examples,
        confidence=confidence,
    )


def pooled_seed_variance(scores: np.ndarray) -> float | None:
    """Variance over seeds of the difference of two sets, from ``scores`` (sets x seeds), the baseline among the sets.

    Twice the mean variance of a score: as if seeds had nothing in common. Taking out what they seem to have in common
    (the additive table sets + seeds) leaves fewer degrees of freedom, which costs more than it gains while only two or
    three sets are known, and then errs too often. None with one seed.
    """
    return None if scores.shape[1] < 2 else float(2 * scores.var(axis=1, ddof=1).mean())


def example_variance(difference: np.ndarray) -> float:
    """Variance that the choice of examples gives to the mean of ``difference`` (seeds x examples), points squared.

    The variance over examples of the mean over seeds, less what the seeds alone put into it (known from two seeds
    on), over the examples; and that of half an example lost and half an example won.
    """
    seeds, examples = difference.shape
    variance = float(difference.mean(axis=0).var(ddof=1))
    if seeds > 1:
        variance -= float(difference.var(axis=0, ddof=1).mean()) / seeds
    return float(max(variance, 0.0) / examples + (SCALE / examples) ** 2)


def satterthwaite(first: float, first_freedom: float, second: float, second_freedom: float) -> float:
    """Degrees of freedom of the sum of two estimated variances, not both zero."""
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
    """The word for an answer to delta (points), the first that applies.

    ``judgement`` is the answer's (None for the full model). ``smallest_certifiable`` (points; None: no delta is)
    explains a full model under criterion ``certified``. With one seed the word is ``observed`` at best.
    Raises ValueError for a smaller answer that does not even hold in the mean.
    """
    if answer.is_full:
        beyond_reach = smallest_certifiable is None or delta < smallest_certifiable
        return "cannot be resolved" if criterion == "certified" and beyond_reach else "full model"
    if judgement is None or judgement.degradation > delta:
        raise ValueError(f"layers {answer} do not hold within {delta} points: they cannot be the answer")
    if held_out_degradation is not None and held_out_degradation > delta:
        return "held_out disagrees"
    return "certified" if judgement.certified(delta) else "observed"


@dataclass(frozen=True)
class Resolution:
    """The smallest delta (points) that can be certified, None with one seed; and a sentence on what would help."""

    smallest_certifiable_delta: float | None
    explanation: str


def share_of_error(position: int) -> float:
    """How much of the error that a delta is allowed goes to the candidate at this place of the written order.

    Half of what is left to each, so that together they err no more often than the level says, however many there are
    and however they depend on each other (Bonferroni).
    """
    return 0.5 ** (1 + position)


def resolution(
    examples: int, seeds: int, scores: Sequence[Sequence[float]] = (), *, confidence: float = 0.95
) -> Resolution:
    """What a certification split of this size, under this many seeds, can tell apart: for the first candidate.

    ``scores`` are those on that split, in points, as far as they are known: for each layer set, the baseline first,
    one per seed.
    """
    if seeds < 2:
        return Resolution(None, "One seed shows no spread between seeds, so nothing can be certified: use 3 or more.")
    spread, level = expected_seed_sd(*scores), 1 - (1 - confidence) * share_of_error(0)

    def reach(seeds: int, examples: int) -> float:
        return smallest_certifiable_delta(examples, seeds, spread, candidates=max(1, len(scores) - 1), confidence=level)

    now, with_more_examples = reach(seeds, examples), reach(seeds, 4 * examples)
    # With few seeds the bound rests on their spread alone the more, the less the examples blur.
    more = "; more examples alone would not help"
    if with_more_examples < now:
        more = f", {4 * examples:,} examples to {with_more_examples:.2f}"
    origin = "as measured" if any(len(each) > 1 for each in scores) else "assumed"
    return Resolution(
        now,
        f"With {seeds} seeds and {examples:,} certification examples, a layer set as good as the baseline can be "
        f"certified from {now:.2f} points on (spread between seeds {spread:.2f}, {origin}). "
        f"{seeds + 2} seeds would bring that to {reach(seeds + 2, examples):.2f}{more}.",
    )


def smallest_certifiable_delta(
    examples: int,
    seeds: int,
    seed_sd: float = ASSUMED_SEED_SD,
    discordant: float = DISCORDANT,
    *,
    candidates: int = 1,
    confidence: float = 0.95,
) -> float:
    """Half-width of the bound (points) for a set truly as good as the baseline; infinite with one seed.

    ``seed_sd`` is the spread of one model's score between seeds, in points; two models' noise is taken as independent.
    ``discordant`` is the share of examples on which the two lastingly differ. Such a set measures about zero, so at
    this delta it is certified about every other time.
    """
    if seeds < 2:
        return math.inf
    seed_part = 2 * seed_sd**2 / seeds
    example_part = discordant * SCALE**2 / examples + (SCALE / examples) ** 2
    freedom = satterthwaite(seed_part, (candidates + 1) * (seeds - 1), example_part, examples - 1)
    return float(stats.t.ppf(confidence, freedom)) * math.sqrt(seed_part + example_part)


def expected_seed_sd(*scores: Sequence[float]) -> float:
    """Spread of a score between seeds (points), from the scores of one or more sets; the assumption without any.

    Two or three seeds alone say little, so the assumption stays in with a weight of its own. This is for a forecast:
    the bound itself rests on the measured spread alone.
    """
    squares = sum(float(((np.asarray(each) - np.mean(each)) ** 2).sum()) for each in scores if each)
    freedom = sum(max(0, len(each) - 1) for each in scores)
    return math.sqrt((ASSUMED_WEIGHT * ASSUMED_SEED_SD**2 + squares) / (ASSUMED_WEIGHT + freedom))


def _checked(array: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] < 2 or (like is not None and array.shape != like.shape):
        raise ValueError(f"expected seeds x examples, two examples at least and all alike; received {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("contributions to a score are finite numbers")
    return array
