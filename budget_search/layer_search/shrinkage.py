"""The best estimate of what a confirmed set loses: its own runs, shrunk towards what all other runs predict of it.

A search confirms the set that looks best of many, so the mean of its few runs flatters it. The surrogate, fitted to all
runs but those of the set itself, predicts its degradation independently of that luck. Both are weighted by their
precision, as in empirical Bayes estimation (Efron and Morris, 1975). All figures are in points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

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


def shrink(observed: float, observed_variance: float, expected: float, expected_sd: float) -> Estimate:
    """The posterior from an observed mean with its variance, and the surrogate's prediction with its error.

    ``observed_variance`` is positive; the residual of the surrogate is added to ``expected_sd`` here.
    """
    prior_variance = expected_sd**2 + RESIDUAL_SD**2
    weight = prior_variance / (prior_variance + observed_variance)
    mean = weight * observed + (1 - weight) * expected
    return Estimate(mean, math.sqrt(weight * observed_variance))
