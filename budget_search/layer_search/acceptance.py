"""The rule by which a confirmed layer set is accepted, for each criterion, and the estimate behind ``likely``.

A search confirms the set that looks best of many, so the mean of its few runs flatters it. The surrogate, fitted to all
runs but those of the set itself, predicts its degradation independently of that luck. The estimate weighs both by their
precision, as in empirical Bayes estimation (Efron and Morris, 1975). All figures are in points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from budget_search.core.config import Criterion
from budget_search.layer_search.verdict import Judgement

SELECTION_BIAS = 0.4
"""The best of many sets is chosen partly for its noise; its predicted degradation is raised by this many standard
deviations."""
RESIDUAL_SD = 0.4
"""Standard deviation of the difference between a set's true degradation and the surrogate's sum over its layers."""


@dataclass(frozen=True)
class Estimate:
    """The posterior of a true degradation: a normal distribution with this mean and standard deviation, in points."""

    mean: float
    sd: float

    def probability_within(self, delta: float) -> float:
        """The probability that the true degradation is at most delta (points)."""
        return NormalDist(self.mean, self.sd).cdf(delta)

    def quantile(self, probability: float) -> float:
        """The degradation, in points, that is not exceeded with this probability."""
        return NormalDist(self.mean, self.sd).inv_cdf(probability)


@dataclass(frozen=True)
class AcceptanceRule:
    """Accepts a confirmed set for a delta (points).

    ``observed``: its mean degradation is within delta. ``likely``: also its true degradation, with ``probability``.
    ``certified``: the upper bound is within delta.
    """

    criterion: Criterion
    probability: float

    def accepts(self, delta: float, judgement: Judgement, estimate: Callable[[], Estimate]) -> bool:
        """``estimate`` is called for ``likely`` only, because it takes a fit of the surrogate."""
        if self.criterion == "certified":
            return judgement.certified(delta)
        if judgement.degradation > delta or self.criterion == "observed":
            return judgement.degradation <= delta
        return estimate().quantile(self.probability) <= delta

    def required_means(
        self, delta: float, expected: np.ndarray, expected_sds: np.ndarray, variance: float
    ) -> np.ndarray:
        """The means up to which sets with these predictions (sets,) would be accepted, for use before their runs.

        ``variance`` is that of a mean degradation over all runs. For ``certified`` the width of the bound is not known
        before the runs; the caller lowers delta by it. Inverts ``shrink``.
        """
        if self.criterion != "likely":
            return np.full(len(expected), delta)
        prior_variances = expected_sds**2 + RESIDUAL_SD**2
        weights = prior_variances / (prior_variances + variance)
        margins = NormalDist().inv_cdf(self.probability) * np.sqrt(weights * variance)
        return np.minimum(delta, (delta - margins - (1 - weights) * expected) / weights)


def shrink(observed: float, observed_variance: float, expected: float, expected_sd: float) -> Estimate:
    """The posterior from an observed mean with its variance, and the surrogate's prediction with its error.

    ``observed_variance`` is positive; the residual of the surrogate is added to ``expected_sd`` here.
    """
    prior_variance = expected_sd**2 + RESIDUAL_SD**2
    weight = prior_variance / (prior_variance + observed_variance)
    mean = weight * observed + (1 - weight) * expected
    return Estimate(mean, math.sqrt(weight * observed_variance))
