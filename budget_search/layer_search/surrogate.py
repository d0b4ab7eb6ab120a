"""The surrogate model: a Bayesian linear regression that predicts the degradation of any layer set in a full run.

The degradation of a set is modelled as a sum over its dropped layers, over dropped neighbours, and a cubic in the
number of dropped layers. Full runs observe that sum directly. Screens observe it through a slope, an offset and an
offset per layer, which are nuisance parameters of the same regression. The scale of the effects, the slope and the
noise of screens are averaged over a small grid, weighted by their marginal likelihood.

On published tables of BERT and on our own 6-layer table, single layers and neighbours explain degradations almost as
well as a second seed does; interactions of more distant layers add nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product

import numpy as np

from budget_search.core.layers import LayerSet

# Prior means and standard deviations for a 12-layer model, in points. Each is multiplied by one of SCALES.
LAYER_SD, NEXT_SD, SECOND_NEXT_SD = 0.4, 0.3, 0.2
POSITION_SD = 0.2
COUNT_MEAN, COUNT_SD = 0.35, 0.25
QUADRATIC_MEAN, QUADRATIC_SD = 0.06, 0.10
CUBIC_MEAN, CUBIC_SD = 0.005, 0.02
OFFSET_SD, LAYER_OFFSET_SD = 0.5, 0.25
# The grid of hyperparameters.
SCALES = (0.35, 0.7, 1.4, 2.8)
SLOPES = (0.8, 1.1, 1.5, 2.1, 3.0)
SCREEN_NOISES = (0.2, 0.5, 1.2)
NEGLIGIBLE = 0.01
"""Grid points whose marginal likelihood is below this fraction of the best one are left out."""
FIRST_LAYER = 4
"""The column of the first layer in ``features``."""
PAIRED_VARIANCE = 1.5
"""Variance of the difference of two full scores with the same seed, in units of the variance of one score."""
MIN_SCREENS_FOR_LOSS = 6
"""Screens needed to fit the degradation per unit of loss."""
LOSS_WEIGHT = 0.75
"""Weight of the degradation predicted from the loss; the measured degradation has the rest."""
BROKEN = 15.0
"""Degradation in points from which a model counts as broken. Broken models do not fit a sum over layers."""


def combine_with_loss(degradations: Sequence[float], loss_increases: Sequence[float | None]) -> list[float]:
    """Average the degradation of each screen, in points, with the one that its mean loss per example predicts.

    On the same examples a mean loss (cross-entropy or squared error) varies less than an accuracy. The degradation per
    unit of loss increase is fitted through the origin on the same screens. With too few of them the degradations are
    returned unchanged.
    """
    pairs = [
        (degradation, increase)
        for degradation, increase in zip(degradations, loss_increases, strict=True)
        if increase is not None and degradation < BROKEN
    ]
    square = sum(increase**2 for _, increase in pairs)
    if len(pairs) < MIN_SCREENS_FOR_LOSS or square == 0 or len(pairs) < len(degradations) / 2:
        return list(degradations)
    per_unit = max(0.0, sum(degradation * increase for degradation, increase in pairs) / square)
    return [
        degradation
        if increase is None or degradation >= BROKEN
        else (1 - LOSS_WEIGHT) * degradation + LOSS_WEIGHT * per_unit * increase
        for degradation, increase in zip(degradations, loss_increases, strict=True)
    ]


@dataclass(frozen=True)
class FullRuns:
    """The confirmations of one set so far: their mean degradation in points, and how many there are."""

    degradation: float
    runs: int


@dataclass(frozen=True)
class Surrogate:
    """The fitted model: the posterior mean of the effects, and ``root`` with ``root @ root.T`` as their covariance."""

    total: int
    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def fit(
        cls,
        total: int,
        screened: Mapping[LayerSet, float],
        full_runs: Mapping[LayerSet, FullRuns],
        seed_sd: float,
        seeds: int,
    ) -> Surrogate:
        """Fit to the degradations of screens and full runs, in points.

        ``seed_sd`` is the standard deviation of a full score between seeds; the baseline has ``seeds`` runs.
        """
        observations = _Observations.of(total, screened, full_runs, seed_sd, seeds)
        posteriors = _posteriors(observations, np.array(list(product(SCALES, SLOPES, SCREEN_NOISES))))
        weights = np.exp(posteriors.log_evidences - posteriors.log_evidences.max())
        likely = weights > NEGLIGIBLE
        weights = weights[likely] / weights[likely].sum()
        means = posteriors.means[likely]
        mean = weights @ means
        # The covariance of a mixture: the mean of the covariances, plus the covariance of the means.
        between = (means - mean) * np.sqrt(weights)[:, None]
        within = np.tensordot(weights, posteriors.covariances(likely), axes=1)
        values, vectors = np.linalg.eigh(between.T @ between + within)
        return cls(total, mean, vectors * np.sqrt(np.maximum(values, 0.0)))

    def predict(self, sets: Sequence[LayerSet]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the degradation of each set in a full run, in points; both (sets,)."""
        return self.predict_rows(features(sets, self.total))

    def predict_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same for the sets with these ``features`` (sets, features)."""
        variance = ((rows @ self.root) ** 2).sum(axis=1)
        return self.expected(rows), np.sqrt(np.maximum(variance, 1e-12))

    def expected(self, rows: np.ndarray) -> np.ndarray:
        """The means of ``predict_rows`` alone."""
        return np.asarray(rows @ self.mean)

    def sample(self, sets: Sequence[LayerSet], random: np.random.Generator, samples: int) -> np.ndarray:
        """Joint samples of the degradations of the sets, in points; (sets, samples)."""
        rows = features(sets, self.total)
        deviations = rows @ self.root @ random.standard_normal((self.root.shape[1], samples))
        return np.asarray(deviations + (rows @ self.mean)[:, None])


def features(sets: Sequence[LayerSet], total: int) -> np.ndarray:
    """The design matrix, (sets, features).

    The columns are: number of dropped layers, its quadratic and cubic term, sum of their positions (-1 to 1), one
    column per layer, one per pair of neighbours, and one per pair of layers two apart.
    """
    dropped = np.ones((len(sets), total))
    row = np.repeat(np.arange(len(sets)), [layers.depth for layers in sets])
    dropped[row, list(chain.from_iterable(layers.kept for layers in sets))] = 0.0
    # Scaled to a model of 12 layers, so that one prior serves every depth.
    count = dropped.sum(axis=1, keepdims=True) * 12 / total
    position = np.linspace(-1.0, 1.0, total) if total > 1 else np.zeros(1)
    return np.hstack(
        [
            count,
            count * (count - 1) / 2,
            count * (count - 1) * (count - 2) / 6,
            dropped @ position[:, None],
            dropped,
            dropped[:, :-1] * dropped[:, 1:],
            dropped[:, :-2] * dropped[:, 2:],
        ]
    )


def _prior(total: int) -> tuple[np.ndarray, np.ndarray]:
    """Prior means and standard deviations of the effects, in the order of ``features``."""
    mean = np.zeros(FIRST_LAYER + total + max(0, total - 1) + max(0, total - 2))
    mean[:3] = COUNT_MEAN, QUADRATIC_MEAN, CUBIC_MEAN
    sds = [COUNT_SD, QUADRATIC_SD, CUBIC_SD, POSITION_SD, *[LAYER_SD] * total]
    sds += [NEXT_SD] * max(0, total - 1) + [SECOND_NEXT_SD] * max(0, total - 2)
    return mean, np.array(sds)


@dataclass(frozen=True)
class _Observations:
    """Design matrices of screens and full runs, and the degradations of both (screens first), in points."""

    total: int
    screens: np.ndarray
    full_runs: np.ndarray
    degradations: np.ndarray
    full_variances: np.ndarray
    baseline_variance: float

    @classmethod
    def of(
        cls,
        total: int,
        screened: Mapping[LayerSet, float],
        full_runs: Mapping[LayerSet, FullRuns],
        seed_sd: float,
        seeds: int,
    ) -> _Observations:
        screened = {layers: degradation for layers, degradation in screened.items() if degradation < BROKEN}
        full_runs = {layers: full for layers, full in full_runs.items() if full.degradation < BROKEN}
        return cls(
            total,
            features(list(screened), total),
            features(list(full_runs), total),
            np.array([*screened.values(), *(full.degradation for full in full_runs.values())]),
            np.array([PAIRED_VARIANCE * seed_sd**2 / full.runs for full in full_runs.values()]),
            seed_sd**2 / seeds,
        )


@dataclass(frozen=True)
class _Posteriors:
    """The posteriors of the effects at every grid point.

    ``log_evidences`` (grid,) are log marginal likelihoods, ``means`` have shape (grid, features). A covariance is the
    diagonal of ``prior_variances`` (grid, features) minus ``explained.T @ explained`` (grid, observations, features).
    """

    log_evidences: np.ndarray
    means: np.ndarray
    prior_variances: np.ndarray
    explained: np.ndarray

    def covariances(self, chosen: np.ndarray) -> np.ndarray:
        """The covariances at these grid points; (chosen, features, features)."""
        explained = self.explained[chosen]
        return self.prior_variances[chosen][:, :, None] * np.eye(self.means.shape[1]) - (
            explained.transpose(0, 2, 1) @ explained
        )


def _posteriors(observed: _Observations, grid: np.ndarray) -> _Posteriors:
    """Bayesian linear regressions, one per row of ``grid`` (grid, 3), solved together.

    A grid point is the scale of the effects, the degradation of a screen per point of a full run, and the standard
    deviation of a screen's noise. The nuisance parameters follow the effects: the offset of screens, their offset per
    layer, and the error of the baseline's mean in full runs.
    """
    total, screens, points = observed.total, len(observed.screens), len(grid)
    scales, slopes, screen_noises = grid.T[:, :, None]
    mean, sd = _prior(total)
    effects = len(mean)
    prior_means = np.zeros((points, effects + 2 + total))
    prior_means[:, :effects] = mean * scales
    prior_variances = np.empty_like(prior_means)
    prior_variances[:, :effects] = (sd * scales) ** 2
    prior_variances[:, effects] = OFFSET_SD**2
    prior_variances[:, effects + 1 : -1] = (LAYER_OFFSET_SD * scales) ** 2
    prior_variances[:, -1] = observed.baseline_variance
    rows = np.zeros((points, len(observed.degradations), prior_means.shape[1]))
    rows[:, :screens, :effects] = slopes[:, :, None] * observed.screens
    rows[:, :screens, effects] = 1.0
    rows[:, :screens, effects + 1 : -1] = observed.screens[:, FIRST_LAYER : FIRST_LAYER + total]
    rows[:, screens:, :effects] = observed.full_runs
    rows[:, screens:, -1] = 1.0
    noises = np.empty(rows.shape[:2])
    noises[:, :screens] = screen_noises**2
    noises[:, screens:] = observed.full_variances
    residuals = observed.degradations - (rows @ prior_means[:, :, None])[:, :, 0]
    cross_covariances = rows * prior_variances[:, None, :]
    covariances = cross_covariances @ rows.transpose(0, 2, 1)
    covariances += (noises + 1e-9)[:, :, None] * np.eye(noises.shape[1])
    factors = np.linalg.cholesky(covariances)
    whitened = np.linalg.solve(
        factors, np.concatenate([residuals[:, :, None], cross_covariances[:, :, :effects]], axis=2)
    )
    first, explained = whitened[:, :, 0], whitened[:, :, 1:]
    log_determinants = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    return _Posteriors(
        log_evidences=-0.5 * (first**2).sum(axis=1) - log_determinants,
        means=prior_means[:, :effects] + (explained.transpose(0, 2, 1) @ first[:, :, None])[:, :, 0],
        prior_variances=prior_variances[:, :effects],
        explained=explained,
    )
