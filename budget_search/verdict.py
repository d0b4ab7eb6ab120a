"""What paired results say: a point estimate, an upper bound of the degradation, and the word for an answer.

Two things make a measured degradation uncertain: which seeds were run, and which examples were scored. Every layer set
is scored with the baseline's seeds on the baseline's examples, so both are judged on paired differences. All figures
are in points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from budget_search.layers import LayerSet

Word = Literal["held_out disagrees", "certified", "observed", "cannot be resolved", "full model"]
Criterion = Literal["observed", "certified"]

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
    so there is no bound and nothing is certified.
    """

    degradation: float
    seed_part: float | None
    example_part: float
    seed_freedom: int
    seeds: int
    examples: int
    confidence: float = 0.95

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
        """Whether the upper bound is within delta (points)."""
        return self.upper is not None and self.upper <= delta


def judge(
    baseline: np.ndarray, candidates: Mapping[LayerSet, np.ndarray], confidence: float = 0.95
) -> dict[LayerSet, Judgement]:
    """Compare layer sets with the baseline on the same examples under the same seeds.

    Every array is seeds x examples and holds each example's contribution to the score, in points: 100 or 0 for
    accuracy, score plus influence for other metrics, so that the mean of a row is that seed's score. Row s of all
    arrays belongs to the same seed, column i to the same example.

    The seed variance of a difference is the larger of the set's own and the one pooled over all sets: its own alone
    is too often small by luck, the pooled one too small for an unsteady set. The example part is what the differences
    vary by beyond the noise of the seeds, and never less than if half an example had changed each way.

    Raises ValueError for arrays of other shapes, or for fewer than two examples.
    """
    baseline = _checked(baseline)
    arrays = {layers: _checked(array, like=baseline) for layers, array in candidates.items()}
    if not arrays:
        return {}
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
            seed_freedom=len(arrays) * (seeds - 1),
            seeds=seeds,
            examples=examples,
            confidence=confidence,
        )
    return judgements


def pooled_seed_variance(scores: np.ndarray) -> float | None:
    """Variance over seeds of the difference of two sets: ``scores`` is sets x seeds, the baseline among the sets.

    Twice the residual mean square of the additive table sets + seeds. Not the mean of the sets' own variances: they
    share the baseline's runs. None with one seed.
    """
    sets, seeds = scores.shape
    if seeds < 2:
        return None
    residual = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0, keepdims=True) + scores.mean()
    return float(2 * (residual**2).sum() / ((sets - 1) * (seeds - 1)))


def example_variance(difference: np.ndarray) -> float:
    """Variance that the choice of examples gives to the mean of ``difference`` (seeds x examples), points squared.

    The variance over examples of the mean over seeds, less what the seeds alone put into it (known from two seeds
    on), over the examples; at least that of half an example lost and half an example won.
    """
    seeds, examples = difference.shape
    variance = float(difference.mean(axis=0).var(ddof=1))
    if seeds > 1:
        variance -= float(difference.var(axis=0, ddof=1).mean()) / seeds
    floor: float = (SCALE / examples) ** 2
    return float(max(variance / examples, floor))


def satterthwaite(first: float, first_freedom: float, second: float, second_freedom: float) -> float:
    """Degrees of freedom of the sum of two estimated variances, not both zero."""
    return (first + second) ** 2 / (first**2 / first_freedom + second**2 / second_freedom)


def verdict_word(
    answer: LayerSet,
    delta: float,
    judgement: Judgement | None,
    *,
    criterion: Criterion = "observed",
    collapsed: bool = False,
    held_out_degradation: float | None = None,
    smallest_certifiable: float | None = None,
) -> Word:
    """The word for an answer to delta (points), the first that applies.

    ``judgement`` is the answer's (None for the full model). ``collapsed`` says that one of its confirmations
    collapsed: that run counts in the mean, and nothing with such a run is certified, because the bound supposes noise
    of a kind that a collapse is not. ``smallest_certifiable`` (points; None: no delta is) explains a full model under
    criterion ``certified``.
    Raises ValueError for a smaller answer that does not even hold in the mean.
    """
    if answer.is_full:
        beyond_reach = smallest_certifiable is None or delta < smallest_certifiable
        return "cannot be resolved" if criterion == "certified" and beyond_reach else "full model"
    if judgement is None or judgement.degradation > delta:
        raise ValueError(f"layers {answer} do not hold within {delta} points: they cannot be the answer")
    if held_out_degradation is not None and held_out_degradation > delta:
        return "held_out disagrees"
    return "certified" if judgement.certified(delta) and not collapsed else "observed"


@dataclass(frozen=True)
class Resolution:
    """The smallest delta (points) that can be certified, None with one seed; and a sentence on what would help."""

    smallest_certifiable_delta: float | None
    explanation: str


def resolution(
    examples: int,
    seeds: int,
    baseline_scores: Sequence[float] = (),
    *,
    candidates: int = 1,
    confidence: float = 0.95,
) -> Resolution:
    """What a certification split of this size, under this many seeds, can tell apart.

    ``baseline_scores`` are the baseline's on that split, in points, one per seed, where they are known already.
    """
    if seeds < 2:
        return Resolution(None, "One seed shows no spread between seeds, so nothing can be certified: use 3 or more.")
    spread = expected_seed_sd(baseline_scores)

    def reach(more_seeds: int, more_examples: int) -> float:
        return smallest_certifiable_delta(
            more_examples, more_seeds, spread, candidates=candidates, confidence=confidence
        )

    now = reach(seeds, examples)
    by_seeds, by_examples = reach(seeds + 2, examples), reach(seeds, 4 * examples)
    remedy = (
        f"{seeds + 2} seeds would bring that to {by_seeds:.2f}"
        if by_seeds < by_examples
        else f"{4 * examples:,} examples would bring that to {by_examples:.2f}"
    )
    origin = "judged by the baseline's" if len(baseline_scores) > 1 else "assumed"
    return Resolution(
        now,
        f"With {seeds} seeds and {examples:,} certification examples, a layer set as good as the baseline can be "
        f"certified from {now:.2f} points on (spread between seeds {spread:.2f}, {origin}); {remedy}.",
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
    example_part = max(discordant * SCALE**2 / examples, (SCALE / examples) ** 2)
    freedom = satterthwaite(seed_part, candidates * (seeds - 1), example_part, examples - 1)
    return float(stats.t.ppf(confidence, freedom)) * math.sqrt(seed_part + example_part)


def expected_seed_sd(scores: Sequence[float]) -> float:
    """Spread of a score between seeds (points), from the scores of one model; the assumption where there are none.

    Two or three seeds alone say little, so the assumption stays in with a weight of its own. This is for a forecast:
    the bound itself rests on the measured spread alone.
    """
    squares = float(((np.asarray(scores) - np.mean(scores)) ** 2).sum()) if len(scores) > 1 else 0.0
    freedom = max(0, len(scores) - 1)
    return math.sqrt((ASSUMED_WEIGHT * ASSUMED_SEED_SD**2 + squares) / (ASSUMED_WEIGHT + freedom))


def _checked(array: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] < 2 or (like is not None and array.shape != like.shape):
        raise ValueError(f"expected seeds x examples, two examples at least and all alike; received {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("contributions to a score are finite numbers")
    return array
