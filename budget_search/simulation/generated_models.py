"""Generated models: the true degradation of every layer set is known, so answers of a search can be checked.

The degradation of a set has the form of the surrogate: a sum over dropped layers and dropped neighbours, and a curve in
their number. The distributions of the effects were fitted by marginal likelihood to the tables of BERT-base published
with Greedy-layer pruning (seven GLUE tasks: all sets of one and two dropped layers, and a chain down to six layers) and
to all sets of three or more layers of a 6-layer encoder on SST-2, with one scale per table. Two assumptions are not
based on data: the steep increase when most layers are dropped, and the errors of screens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, Trial
from budget_search.layer_search.surrogate import FIRST_LAYER, features

BASELINE = 88.0
CHANCE = 50.0
# Fitted distributions, in points: (mean, sd) per dropped layer and per pair of dropped layers; sd of the effects of the
# position, of each layer, of dropped neighbours, of dropped layers two apart; sd of the logarithm of a task's scale.
PER_LAYER, PER_PAIR = (0.42, 0.16), (0.11, 0.12)
POSITION_SD, LAYER_SD, NEXT_SD, SECOND_NEXT_SD = 0.20, 0.39, 0.37, 0.18
SCALE_SD = 0.8
# Probability that the lowest quarter of the layers matters more, as in the 6-layer encoder, and by how much.
IMPORTANT_BOTTOM, BOTTOM_EXTRA = 0.25, (0.3, 1.2)
# Plausible degradations of the lower half of the layers, and of the best single layer. Other models are discarded.
TOP_HALF, ONE_LAYER = (0.0, 11.0), (3.0, 80.0)


@dataclass(frozen=True)
class Noise:
    """The errors of fine-tunes, in points unless stated otherwise.

    A full score has standard deviation ``seed_sd`` between seeds; the fraction ``shared`` of its variance is common to
    all sets. The degradation of a screen is the true one times a slope (drawn once per model from the interval
    ``slopes``), plus a bias of the layer set that no seed changes, plus noise. The bias has ``bias`` times the standard
    deviation of true degradations within a depth. Noise has ``score_noise`` (for the score) or ``loss_noise`` (for the
    mean loss) times sqrt(``seed_sd``**2 + 1/4). A screen of half the recipe collapses where it loses more than about
    ``collapse`` points, give or take half as many, a screen of the whole recipe where it loses twice that.
    """

    seed_sd: float = 0.6
    shared: float = 0.25
    slopes: tuple[float, float] = (0.8, 1.5)
    bias: float = 0.6
    score_noise: float = 1.0
    loss_noise: float = 0.3
    points_per_unit_of_loss: float = 35.0
    collapse: float = math.inf


class GeneratedModel:
    """One generated model; its ``run_jobs`` can be given to a search.

    The same number gives the same model and the same fine-tunes, in any order of calls.
    """

    def __init__(self, number: int, total: int = 12, noise: Noise | None = None) -> None:
        self.number = number
        self.total = total
        self.noise = noise or Noise()
        draws = np.random.default_rng([20261120, number, total])
        while True:
            effects = _effects(draws, total)
            turn, steepness = draws.uniform(0.5, 0.7) * total, draws.uniform(0.5, 2.0) * 144 / total**2
            self._truth = _degradations(effects, turn, steepness, total)
            if self._plausible():
                break
        self._slope = float(draws.uniform(*self.noise.slopes))
        # Half of the bias's variance is due to single layers and adds up over the dropped ones, half to each set.
        bias_sd = self.noise.bias * self._spread_within_depth()
        by_layer = draws.normal(0, 1, total)
        dropped = _all_features(total)[:, FIRST_LAYER : FIRST_LAYER + total]
        mean_dropped = dropped.sum(axis=1).mean()
        self._bias = (
            bias_sd
            * np.sqrt(0.5)
            * (dropped @ (by_layer - by_layer.mean()) / np.sqrt(mean_dropped) + draws.normal(0, 1, len(self._sets)))
        )

    @cached_property
    def _sets(self) -> tuple[LayerSet, ...]:
        return every_set(self.total)

    @cached_property
    def _position(self) -> dict[LayerSet, int]:
        return {layers: index for index, layers in enumerate(self._sets)}

    def degradation(self, layers: LayerSet) -> float:
        """True mean degradation, in points."""
        return float(self._truth[self._position[layers]])

    def smallest_depth(self, delta: float) -> int:
        """The fewest layers of a set whose true degradation is within delta (points)."""
        pairs = zip(self._sets, self._truth, strict=True)
        return min(layers.depth for layers, degradation in pairs if degradation <= delta)

    def run_jobs(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        return map(self.measure, filter(None, jobs))

    def measure(self, job: Job) -> Trial:
        layers, rung, seed = job.key.layers, job.key.rung, job.key.seed
        position = self._position[layers]
        draw = np.random.default_rng([self.number, position, seed, round(rung * 10**6)])
        noise, tokens = self.noise, round(24_000 * rung * layers.depth / self.total)
        if rung == FULL_RUNG and job.split == "certification":
            common = float(np.random.default_rng([self.number, seed]).normal())
            own = float(draw.normal())
            error = noise.seed_sd * (np.sqrt(noise.shared) * common + np.sqrt(1 - noise.shared) * own)
            score = max(CHANCE, BASELINE - self.degradation(layers) + error)
            return Trial(job.key, job.split, "complete", score, train_tokens=tokens, train_seconds=1.0)
        spread = np.sqrt(noise.seed_sd**2 + 0.25)
        observed = self._slope * self.degradation(layers) + (0.0 if layers.is_full else self._bias[position])
        if not layers.is_full and self._collapses(position, rung, observed):
            return Trial(job.key, job.split, "collapsed", CHANCE, train_tokens=tokens, train_seconds=rung)
        score = max(CHANCE, BASELINE - 3 - observed + noise.score_noise * spread * float(draw.normal()))
        loss_degradation = observed + noise.loss_noise * spread * float(draw.normal())
        metrics = {"loss": 0.4 + loss_degradation / noise.points_per_unit_of_loss}
        return Trial(job.key, job.split, "complete", score, metrics, train_tokens=tokens, train_seconds=rung)

    def _collapses(self, position: int, rung: float, observed: float) -> bool:
        threshold = self.noise.collapse
        if math.isinf(threshold):
            return False
        draw = np.random.default_rng([self.number, position, round(rung * 10**6)])
        return bool(observed + threshold / 2 * draw.normal() > 2 * rung * threshold)

    def _plausible(self) -> bool:
        top_half = self.degradation(LayerSet(tuple(range(self.total - self.total // 2)), self.total))
        one_layer = min(self.degradation(LayerSet((index,), self.total)) for index in range(self.total))
        return TOP_HALF[0] <= top_half <= TOP_HALF[1] and ONE_LAYER[0] <= one_layer <= ONE_LAYER[1]

    def _spread_within_depth(self) -> float:
        depths = np.array([layers.depth for layers in self._sets])
        middle = range(self.total // 3, self.total - self.total // 6)
        return float(np.mean([self._truth[depths == depth].std() for depth in middle]))


@cache
def every_set(total: int) -> tuple[LayerSet, ...]:
    """All layer sets of a model, the full one last."""
    kept = itertools.chain.from_iterable(itertools.combinations(range(total), n) for n in range(1, total + 1))
    return tuple(LayerSet(layers, total) for layers in kept)


def _effects(draws: np.random.Generator, total: int) -> np.ndarray:
    """The effects of one model, in the order of ``surrogate.features``."""
    layers = draws.normal(0, LAYER_SD, total)
    if draws.random() < IMPORTANT_BOTTOM:
        layers[: total // 4] += draws.uniform(*BOTTOM_EXTRA)
    return np.asarray(
        np.exp(draws.normal(0, SCALE_SD))
        * np.concatenate(
            [
                [draws.normal(*PER_LAYER), draws.normal(*PER_PAIR), 0.0, draws.normal(0, POSITION_SD)],
                layers,
                draws.normal(0, NEXT_SD, total - 1),
                draws.normal(0, SECOND_NEXT_SD, total - 2),
            ]
        )
    )


def _degradations(effects: np.ndarray, turn: float, steepness: float, total: int) -> np.ndarray:
    """True degradation of every set, in points: the effects, and a parabola beyond ``turn`` dropped layers."""
    sets = every_set(total)
    dropped = np.array([total - layers.depth for layers in sets])
    return np.asarray(_all_features(total) @ effects + steepness * np.maximum(0.0, dropped - turn) ** 2)


@cache
def _all_features(total: int) -> np.ndarray:
    return features(every_set(total), total)
