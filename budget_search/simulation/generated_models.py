"""Made-up models whose every layer set has a known true loss, and fine-tunes of them: where a search can be judged.

The loss of a set has the form that fits real tables (see ``surrogate``): a sum over dropped layers and over dropped
neighbours, and a curve in their number. Its sizes were fitted by marginal likelihood to the tables of BERT-base that
greedy-layer pruning published (seven GLUE tasks: all sets of one and two dropped layers, a chain down to six) and to
all sets of three and more layers of a 6-layer encoder on SST-2; one scale per table covers the differences between
tasks. What no table shows is made up: how the loss turns up when most layers go, and how screens mislead.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, Trial
from budget_search.layer_search.surrogate import FIRST_LAYER, features

BASELINE = 88.0
CHANCE = 50.0
# Fitted, in points: mean and spread of the loss per dropped layer and per pair of them, of a slope over the height,
# of each layer, of neighbours that both go and of layers two apart; of the logarithm of a task's scale.
PER_LAYER, PER_PAIR = (0.42, 0.16), (0.11, 0.12)
HEIGHT_SD, LAYER_SD, NEXT_SD, SECOND_NEXT_SD = 0.20, 0.39, 0.37, 0.18
SCALE_SD = 0.8
# The lowest quarter of the layers is dearer still in some models, as in the 6-layer encoder.
DEAR_BOTTOM, BOTTOM_EXTRA = 0.25, (0.3, 1.2)
# Dropping half of the layers from the top loses at most so much, keeping one layer at least and at most so much.
TOP_HALF, ONE_LAYER = (0.0, 11.0), (3.0, 80.0)


@dataclass(frozen=True)
class Noise:
    """How fine-tunes mislead, in points where nothing else is said.

    A full score varies by ``seed_sd`` between seeds, a quarter of its variance being common to all sets of a seed. A
    screen loses ``slopes`` (drawn once per model) times what the set truly loses, off by a bias that belongs to layers
    and set and not to chance (``bias`` times the spread of the truth within a depth), off again by chance: the score
    by ``score_noise`` and the mean loss by ``loss_noise`` times the square root of ``seed_sd`` squared plus a quarter.
    """

    seed_sd: float = 0.6
    shared: float = 0.25
    slopes: tuple[float, float] = (0.8, 1.5)
    bias: float = 0.6
    score_noise: float = 1.0
    loss_noise: float = 0.3
    points_per_unit_of_loss: float = 35.0


class GeneratedModel:
    """One made-up model, with ``run_jobs`` as a search calls it. The same number makes the same model and the same
    fine-tunes, whatever was asked before."""

    def __init__(self, number: int, total: int = 12, noise: Noise | None = None) -> None:
        self.number = number
        self.total = total
        self.noise = noise or Noise()
        draws = np.random.default_rng([20261120, number, total])
        while True:
            effects = _effects(draws, total)
            turn, steepness = draws.uniform(0.5, 0.7) * total, draws.uniform(0.5, 2.0) * 144 / total**2
            self._truth = _losses(effects, turn, steepness, total)
            if self._plausible():
                break
        self._slope = float(draws.uniform(*self.noise.slopes))
        # Half of the bias's variance belongs to layers, so that it adds up over those dropped, half to each set.
        bias_sd = self.noise.bias * self._spread_within_depth()
        by_layer = draws.normal(0, 1, total)
        gone = _columns_of_all(total)[:, FIRST_LAYER : FIRST_LAYER + total]
        mean_gone = gone.sum(axis=1).mean()
        self._bias = (
            bias_sd
            * np.sqrt(0.5)
            * (gone @ (by_layer - by_layer.mean()) / np.sqrt(mean_gone) + draws.normal(0, 1, len(self._sets)))
        )

    @cached_property
    def _sets(self) -> tuple[LayerSet, ...]:
        return every_set(self.total)

    @cached_property
    def _position(self) -> dict[LayerSet, int]:
        return {layers: index for index, layers in enumerate(self._sets)}

    def lost(self, layers: LayerSet) -> float:
        """True mean degradation, in points."""
        return float(self._truth[self._position[layers]])

    def fewest(self, delta: float) -> int:
        """The truth: the fewest layers of a set whose true degradation is within delta (points)."""
        return min(layers.depth for layers, lost in zip(self._sets, self._truth, strict=True) if lost <= delta)

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
            score = max(CHANCE, BASELINE - self.lost(layers) + error)
            return Trial(job.key, job.split, "complete", score, train_tokens=tokens, train_seconds=1.0)
        spread = np.sqrt(noise.seed_sd**2 + 0.25)
        seen = self._slope * self.lost(layers) + (0.0 if layers.is_full else self._bias[position])
        score = max(CHANCE, BASELINE - 3 - seen + noise.score_noise * spread * float(draw.normal()))
        further = seen + noise.loss_noise * spread * float(draw.normal())
        metrics = {"loss": 0.4 + further / noise.points_per_unit_of_loss}
        return Trial(job.key, job.split, "complete", score, metrics, train_tokens=tokens, train_seconds=rung)

    def _plausible(self) -> bool:
        top_half = self.lost(LayerSet(tuple(range(self.total - self.total // 2)), self.total))
        one_layer = min(self.lost(LayerSet((index,), self.total)) for index in range(self.total))
        return TOP_HALF[0] <= top_half <= TOP_HALF[1] and ONE_LAYER[0] <= one_layer <= ONE_LAYER[1]

    def _spread_within_depth(self) -> float:
        depths = np.array([layers.depth for layers in self._sets])
        middle = range(self.total // 3, self.total - self.total // 6)
        return float(np.mean([self._truth[depths == depth].std() for depth in middle]))


@cache
def every_set(total: int) -> tuple[LayerSet, ...]:
    """All sets of a model, the full one last."""
    kept = itertools.chain.from_iterable(itertools.combinations(range(total), n) for n in range(1, total + 1))
    return tuple(LayerSet(layers, total) for layers in kept)


def _effects(draws: np.random.Generator, total: int) -> np.ndarray:
    """One model's effects, in the order of ``surrogate.features``."""
    layers = draws.normal(0, LAYER_SD, total)
    if draws.random() < DEAR_BOTTOM:
        layers[: total // 4] += draws.uniform(*BOTTOM_EXTRA)
    return np.asarray(
        np.exp(draws.normal(0, SCALE_SD))
        * np.concatenate(
            [
                [draws.normal(*PER_LAYER), draws.normal(*PER_PAIR), 0.0, draws.normal(0, HEIGHT_SD)],
                layers,
                draws.normal(0, NEXT_SD, total - 1),
                draws.normal(0, SECOND_NEXT_SD, total - 2),
            ]
        )
    )


def _losses(effects: np.ndarray, turn: float, steepness: float, total: int) -> np.ndarray:
    """True loss of every set, in points: by the effects, and a parabola beyond ``turn`` dropped layers."""
    sets = every_set(total)
    dropped = np.array([total - layers.depth for layers in sets])
    return np.asarray(_columns_of_all(total) @ effects + steepness * np.maximum(0.0, dropped - turn) ** 2)


@cache
def _columns_of_all(total: int) -> np.ndarray:
    return features(every_set(total), total)
