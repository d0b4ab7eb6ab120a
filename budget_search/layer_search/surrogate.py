"""What any layer set will lose in full, from the few that were measured: a Bayesian linear model of layer effects.

The loss of a set is a sum over its dropped layers, over pairs of neighbours that are both dropped, and of a curve in
their number. Screens see that sum through a slope, an offset and an offset per layer, which are estimated with it; full
runs see it directly. How large effects, slope and noise are is averaged over a small grid, by the evidence for each.

On published tables of BERT and on our own 6-layer table, layers and neighbours explain what sets lose almost as well as
a seed repeats it; farther pairs add nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product

import numpy as np

from budget_search.core.layers import LayerSet

# Prior standard deviations of a 12-layer model, in points; each is multiplied by one of the scales.
LAYER_SD, NEXT_SD, SECOND_NEXT_SD = 0.4, 0.3, 0.2
POSITION_SD = 0.2
COUNT_MEAN, COUNT_SD = 0.35, 0.25
CURVE_MEAN, CURVE_SD = 0.06, 0.10
BEND_MEAN, BEND_SD = 0.005, 0.02
OFFSET_SD, LAYER_OFFSET_SD = 0.5, 0.25
SCALES = (0.35, 0.7, 1.4, 2.8)
SLOPES = (0.8, 1.1, 1.5, 2.1, 3.0)
SCREEN_NOISES = (0.2, 0.5, 1.2)
# Where the effects of single layers begin among the columns.
FIRST_LAYER = 4
# Points of the grid with less than this share of the best one's evidence are left out.
NEGLIGIBLE = 0.01
# Screens from which on the worth of a unit of loss is fitted.
FEWEST_TO_FIT = 6
# How much of what a screen lost is taken from its mean loss, the steadier signal.
LOSS_WEIGHT = 0.75
# A run that lost this many points broke: what it lost is no sum of layers.
BROKEN = 15.0


def steadied(points: Sequence[float], further_losses: Sequence[float | None]) -> list[float]:
    """Points lost on screens, each averaged with what the further loss per example says they should be.

    A mean loss (cross-entropy, squared error) is less noisy than an accuracy on the same examples. How many points one
    unit of it is worth is fitted through the origin on the screens themselves; left alone while they are too few.
    """
    pairs = [
        (lost, loss) for lost, loss in zip(points, further_losses, strict=True) if loss is not None and lost < BROKEN
    ]
    square = sum(loss**2 for _, loss in pairs)
    if len(pairs) < FEWEST_TO_FIT or square == 0 or len(pairs) < len(points) / 2:
        return list(points)
    worth = max(0.0, sum(lost * loss for lost, loss in pairs) / square)
    return [
        lost if loss is None or lost >= BROKEN else (1 - LOSS_WEIGHT) * lost + LOSS_WEIGHT * worth * loss
        for lost, loss in zip(points, further_losses, strict=True)
    ]


@dataclass(frozen=True)
class FullRuns:
    """What the confirmations of one set lost against the baseline's: mean over so many seeds, in points."""

    lost: float
    runs: int


@dataclass(frozen=True)
class Surrogate:
    """A fitted model: mean and a root of the covariance of the effects, both over the whole grid."""

    total: int
    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def fit(
        cls,
        total: int,
        screened: Mapping[LayerSet, float],
        in_full: Mapping[LayerSet, FullRuns],
        seed_sd: float,
        seeds: int,
    ) -> Surrogate:
        """From points lost on screens and in full; ``seed_sd`` is the spread of a full score between seeds."""
        screened = {layers: lost for layers, lost in screened.items() if lost < BROKEN}
        in_full = {layers: full for layers, full in in_full.items() if full.lost < BROKEN}
        short, long = columns(list(screened), total), columns(list(in_full), total)
        target = np.array([*screened.values(), *(full.lost for full in in_full.values())])
        full_noise = np.array([1.5 * seed_sd**2 / full.runs for full in in_full.values()])
        fits = [
            _posterior(total, short, long, target, slope, scale, np.r_[np.full(len(short), noise**2), full_noise],
                       seed_sd**2 / seeds)
            for scale, slope, noise in product(SCALES, SLOPES, SCREEN_NOISES)
        ]  # fmt: skip
        evidence = np.array([fit[0] for fit in fits])
        weights = np.exp(evidence - evidence.max())
        likely = [index for index, weight in enumerate(weights) if weight > NEGLIGIBLE]
        weights = weights[likely] / weights[likely].sum()
        means = np.array([fits[index][1] for index in likely])
        mean = weights @ means
        # Of a mixture: the mean covariance, and how far the means lie apart.
        apart = (means - mean) * np.sqrt(weights)[:, None]
        covariance = apart.T @ apart + sum(w * fits[i][2] for w, i in zip(weights, likely, strict=True))
        values, vectors = np.linalg.eigh(covariance)
        return cls(total, mean, vectors * np.sqrt(np.maximum(values, 0.0)))

    def expect(self, sets: Sequence[LayerSet]) -> tuple[np.ndarray, np.ndarray]:
        """Points that each set is expected to lose in full, and the standard deviation of that expectation."""
        rows = columns(sets, self.total)
        variance = ((rows @ self.root) ** 2).sum(axis=1)
        return rows @ self.mean, np.sqrt(np.maximum(variance, 1e-12))

    def draw(self, sets: Sequence[LayerSet], random: np.random.Generator, draws: int) -> np.ndarray:
        """What the sets might lose, drawn jointly; (sets, draws)."""
        rows = columns(sets, self.total)
        lost = rows @ self.root @ random.standard_normal((self.root.shape[1], draws))
        return np.asarray(lost + (rows @ self.mean)[:, None])


def columns(sets: Sequence[LayerSet], total: int) -> np.ndarray:
    """The features of layer sets, (sets, features): see ``_prior`` for their order."""
    gone = np.ones((len(sets), total))
    row = np.repeat(np.arange(len(sets)), [layers.depth for layers in sets])
    gone[row, list(chain.from_iterable(layers.kept for layers in sets))] = 0.0
    # Counted as if the model had 12 layers, so that one prior serves every depth.
    count = gone.sum(axis=1, keepdims=True) * 12 / total
    height = np.linspace(-1.0, 1.0, total) if total > 1 else np.zeros(1)
    return np.hstack(
        [
            count,
            count * (count - 1) / 2,
            count * (count - 1) * (count - 2) / 6,
            gone @ height[:, None],
            gone,
            gone[:, :-1] * gone[:, 1:],
            gone[:, :-2] * gone[:, 2:],
        ]
    )


def _prior(total: int) -> tuple[np.ndarray, np.ndarray]:
    mean = np.zeros(FIRST_LAYER + total + max(0, total - 1) + max(0, total - 2))
    mean[:3] = COUNT_MEAN, CURVE_MEAN, BEND_MEAN
    sds = [COUNT_SD, CURVE_SD, BEND_SD, POSITION_SD, *[LAYER_SD] * total]
    sds += [NEXT_SD] * max(0, total - 1) + [SECOND_NEXT_SD] * max(0, total - 2)
    return mean, np.array(sds)


def _posterior(
    total: int,
    short: np.ndarray,
    long: np.ndarray,
    target: np.ndarray,
    slope: float,
    scale: float,
    noise: np.ndarray,
    baseline_variance: float,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Log evidence, mean and covariance of the effects, for one point of the grid.

    Nuisances beside the effects: the screens' offset, their offset per layer, and the baseline's error in full runs.
    """
    mean, sd = _prior(total)
    own = len(mean)
    nuisances = np.r_[OFFSET_SD, np.full(total, LAYER_OFFSET_SD * scale), np.sqrt(baseline_variance)]
    rows = np.zeros((len(target), own + len(nuisances)))
    rows[: len(short), :own] = slope * short
    rows[: len(short), own] = 1.0
    rows[: len(short), own + 1 : own + 1 + total] = short[:, FIRST_LAYER : FIRST_LAYER + total]
    rows[len(short) :, :own] = long
    rows[len(short) :, -1] = 1.0
    prior_mean = np.r_[mean * scale, np.zeros(len(nuisances))]
    prior_variance = np.r_[(sd * scale) ** 2, nuisances**2]
    residual = target - rows @ prior_mean
    spread = rows * prior_variance
    covariance = spread @ rows.T + np.diag(noise)
    factor = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(target)))
    whitened = np.linalg.solve(factor, np.column_stack([residual, spread]))
    evidence = -0.5 * float(whitened[:, 0] @ whitened[:, 0]) - float(np.log(np.diag(factor)).sum())
    posterior_mean = prior_mean + whitened[:, 1:].T @ whitened[:, 0]
    gained = whitened[:, 1 : 1 + own]
    return evidence, posterior_mean[:own], np.diag(prior_variance[:own]) - gained.T @ gained
