"""The cost of evaluations on a device where a few steps were timed: seconds, equivalents, bytes on disk.

Imports no torch, so that processes that simulate searches start fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from budget_search.core.config import Recipe
from budget_search.core.dropping import phases
from budget_search.core.layers import LayerSet
from budget_search.core.trial import EVALUATION_COST, FULL_RUNG, Job, Trial, TrialKey
from budget_search.layer_search.settings import SearchSettings

TIMED_ROUNDS = 32
BYTES_PER_PARAMETER = 4


@dataclass(frozen=True)
class Speed:
    """Seconds at the probed ``depths`` (ascending): to build a model, for a training step with a batch of the recipe,
    to read one padded token, to write the weights."""

    depths: tuple[int, ...]
    building: tuple[float, ...]
    step: tuple[float, ...]
    token: tuple[float, ...]
    writing: tuple[float, ...]

    def seconds(self, part: str, depth: float) -> float:
        """Seconds of one part at any depth, interpolated linearly between the probed depths."""
        return float(np.interp(depth, self.depths, getattr(self, part)))


@dataclass(frozen=True)
class EvaluationTime:
    """Seconds of one evaluation at a rung and a depth: training, evaluation on its split, and all of it."""

    rung: float
    depth: int
    split: str
    steps: int
    train_seconds: float
    evaluation_seconds: float
    seconds: float


@dataclass(frozen=True)
class EvaluationCosts:
    """The cost of jobs on this device: seconds, equivalents, disk space.

    Timing the answers takes ``TIMED_ROUNDS`` of ``timed_tokens``, and at most ``timing_seconds``.
    """

    total: int
    recipe: Recipe
    speed: Speed
    full_steps: int
    train_tokens: float
    tokens: Mapping[str, int]
    padded: Mapping[str, int]
    timed_tokens: int
    timing_seconds: float
    parameters: int
    layer_parameters: float

    def depth(self, job: Job) -> float:
        """The depth in this model of a simulated job, whose model may have another number of layers."""
        return job.key.layers.depth * self.total / job.key.layers.total

    def training(self, rung: float, depth: float) -> list[tuple[int, int]]:
        """The steps of each training phase of a model with this depth, and the number of layers during the phase."""
        layers = LayerSet(tuple(range(max(1, round(depth)))), self.total)
        share = rung * self.full_steps / self.recipe.epochs
        return [(max(1, round(share * phase.epochs)), phase.layers.depth) for phase in phases(self.recipe, layers)]

    def seconds(self, job: Job) -> float:
        depth = self.depth(job)
        other = self.speed.seconds("building", depth) + job.keep_weights * self.speed.seconds("writing", depth)
        return self.training_seconds(job.key.rung, depth) + self.evaluation_seconds(job.split, depth) + other

    def training_seconds(self, rung: float, depth: float) -> float:
        return sum(steps * self.speed.seconds("step", layers) for steps, layers in self.training(rung, depth))

    def evaluation_seconds(self, split: str, depth: float) -> float:
        return self.padded[split] * self.speed.seconds("token", depth)

    def finishing_seconds(self, answers: int, seeds: int, workers: int) -> float:
        """Seconds to score answers and baseline on held_out with every seed, and to time them in turns."""
        scoring = (1 + answers) * seeds * self.evaluation_seconds("held_out", self.total) / workers
        timing = TIMED_ROUNDS * (1 + answers) * self.timed_tokens * self.speed.seconds("token", self.total)
        return scoring + min(timing, self.timing_seconds)

    def training_equivalents(self, job: Job) -> float:
        work = sum(steps * layers for steps, layers in self.training(job.key.rung, self.depth(job)))
        return work / (self.full_steps * self.total)

    def equivalents(self, job: Job) -> float:
        reading = self.tokens[job.split] / self.train_tokens * self.depth(job) / self.total
        return self.training_equivalents(job) + EVALUATION_COST * reading

    def disk_bytes(self, job: Job) -> float:
        """Bytes of a confirmation's weights; negligible for a screen."""
        size = self.parameters - (self.total - self.depth(job)) * self.layer_parameters
        return size * BYTES_PER_PARAMETER if job.keep_weights else 0.0

    def table(self, settings: SearchSettings) -> Iterator[EvaluationTime]:
        """Every rung in use at the probed depths."""
        rungs = (
            [FULL_RUNG]
            if settings.named
            else sorted({settings.screen_rung, min(2 * settings.screen_rung, 1.0), FULL_RUNG})
        )
        for rung in rungs:
            split = "certification" if rung == FULL_RUNG else "selection"
            for depth in reversed(range(1, self.total + 1)):
                training, evaluation = self.training_seconds(rung, depth), self.evaluation_seconds(split, depth)
                steps = sum(steps for steps, _ in self.training(rung, depth))
                yield EvaluationTime(rung, depth, split, steps, training, evaluation, training + evaluation)


@dataclass(frozen=True)
class RemainingWork:
    """The cost of the remaining evaluations; those that the study already holds cost nothing.

    ``known`` holds the layer set, rung and seed of each. None stands for the full model, because a simulated search may
    have another number of layers.
    """

    costs: EvaluationCosts
    known: frozenset[tuple[LayerSet | None, float, int]]

    @classmethod
    def of(cls, costs: EvaluationCosts, history: Sequence[Trial]) -> RemainingWork:
        return cls(costs, frozenset(_without_depth(trial.key) for trial in history))

    def is_known(self, job: Job) -> bool:
        return _without_depth(job.key) in self.known

    def seconds(self, job: Job) -> float:
        return 0.0 if self.is_known(job) else self.costs.seconds(job)


def _without_depth(key: TrialKey) -> tuple[LayerSet | None, float, int]:
    return (None if key.layers.is_full else key.layers), key.rung, key.seed
