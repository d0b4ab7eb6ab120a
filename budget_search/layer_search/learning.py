"""Whether the full model has learnt the task: its gain over the best constant prediction.

A search measures what smaller models lose. This is meaningless if the full model is no better than a constant
prediction, because every layer set is then within any delta.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from budget_search.core.formatting import plural, tolerance
from budget_search.layer_search.verdict import (
    POINTS,
    PRIOR_DEGREES_OF_FREEDOM,
    example_variance,
    expected_seed_sd,
    largest_weight,
    satterthwaite,
)

CONFIDENCE = 0.95
MOST_FAILED_SHARE = 1 / 3
"""Share of the baseline's seeds that may fail to learn the task without ending the search."""
UNBALANCED = 90.0
"""If a constant prediction scores this many points, another metric is recommended."""
LARGE_SHARE = 0.1
"""A delta above this share of the gain is worth a remark."""


@dataclass(frozen=True)
class Gain:
    """What the full model has learnt, in points on certification.

    ``constant`` is the score of the best constant prediction, ``value`` the full model's mean score minus that,
    ``lower`` its one-sided 95 % confidence bound over seeds and examples. ``failed`` holds the positions of the seeds
    whose own gain is at most one standard error over examples.
    """

    constant: float
    value: float
    lower: float
    failed: tuple[int, ...]

    @property
    def score(self) -> float:
        """The full model's mean score."""
        return self.constant + self.value

    def kept(self, degradation: float) -> float:
        """The fraction of the gain that a model keeps if it loses ``degradation`` points; may be negative."""
        return 1 - degradation / self.value


def gain_over_constant(baseline: np.ndarray, constant: np.ndarray, weight: float = POINTS) -> Gain:
    """Compare the baseline (seeds, examples) with a constant prediction (examples,), both contributions in points.

    The variance between seeds is mixed with the prior of ``expected_seed_sd``, so that a single seed has a bound and
    one seed that learns by luck does not stand for all. ``weight`` is as in ``judge``.
    """
    difference = np.asarray(baseline, dtype=np.float64) - np.asarray(constant, dtype=np.float64)
    seeds, examples = difference.shape
    per_seed = difference.mean(axis=1)
    seed_variance = expected_seed_sd(per_seed.tolist()) ** 2 / seeds
    weight = max(weight, largest_weight(baseline, constant))
    own_variance = example_variance(difference, weight)
    freedom = satterthwaite(seed_variance, PRIOR_DEGREES_OF_FREEDOM + seeds - 1, own_variance, examples - 1)
    width = float(special.stdtrit(freedom, CONFIDENCE)) * math.sqrt(seed_variance + own_variance)
    return Gain(
        constant=float(np.mean(constant)),
        value=float(per_seed.mean()),
        lower=float(per_seed.mean()) - width,
        failed=tuple(index for index, row in enumerate(difference) if row.mean() <= _standard_error(row, weight)),
    )


def why_not_learnt(gain: Gain | None, failed: Sequence[int], seeds: Sequence[int]) -> str | None:
    """Why the full model is no valid baseline; None if it has learnt the task."""
    short = shortfall(gain, failed, seeds)
    return short and (f"the full model has not learnt the task ({short}), so no layer set can be compared with it")


def shortfall(gain: Gain | None, failed: Sequence[int], seeds: Sequence[int]) -> str | None:
    """Why a model counts as not having learnt the task; None if it has learnt it.

    ``failed`` are the ``seeds`` with which it has not: collapsed, or no better than the constant prediction. ``gain``
    is None if the best constant prediction is unknown.
    """
    too_many = len(failed) > MOST_FAILED_SHARE * len(seeds)
    if not too_many and (gain is None or gain.lower > 0):
        return None
    reasons = [f"score {gain.score:.1f}, best constant prediction {gain.constant:.1f}"] if gain else []
    if too_many:
        reasons.append(f"no better than a constant prediction with {len(failed)} of {plural(len(seeds), 'seed')}")
    return "; ".join(reasons)


def remarks(gain: Gain | None, failed: Sequence[int], seeds: Sequence[int], deltas: Iterable[float]) -> list[str]:
    """Sentences for the report: seeds that failed, and deltas (points) that are a large part of what was learnt."""
    told = []
    if failed:
        told.append(
            f"With {len(failed)} of {plural(len(seeds), 'seed')} ({', '.join(map(str, failed))}) the full model did "
            "not learn the task. This favours smaller sets, which are compared with its mean, so nothing is certified."
        )
    if gain and gain.constant >= UNBALANCED:
        told.append(
            f"The best constant prediction scores {gain.constant:.1f}: this metric is uninformative for unbalanced "
            "labels. Consider --metric f1 or --metric matthews (for tags: entity_f1)."
        )
    for delta in sorted(deltas) if gain else ():
        if gain and delta > LARGE_SHARE * gain.value:
            told.append(
                f"An allowed loss of {tolerance(delta / 100)} is {delta / gain.value:.0%} of the full model's gain "
                f"over the best constant prediction: it scores {gain.score:.2f}, the constant prediction "
                f"{gain.constant:.2f}."
            )
    return told


def _standard_error(difference: np.ndarray, weight: float) -> float:
    """Standard error over examples of the mean of one seed's differences (examples,)."""
    return math.sqrt(example_variance(difference[None, :], weight))
