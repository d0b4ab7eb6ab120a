"""What an evaluation costs here: seconds by a timed probe, equivalents by arithmetic, bytes on the disk."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from budget_search.core.config import Recipe
from budget_search.core.dropping import phases
from budget_search.core.layers import LayerSet
from budget_search.core.trial import EVALUATION_COST, FULL_RUNG, Job
from budget_search.data.tokenization import EncodedTask
from budget_search.engine.evaluation import EvaluationContext, loaded
from budget_search.engine.measurements.cost import TIMED_BATCHES, TIMED_SECONDS, parameters
from budget_search.engine.measurements.speed import Speed, padded_tokens
from budget_search.layer_search.settings import SearchSettings
from budget_search.storage.study_folder import stored_config

TIMED_ROUNDS = 32
BYTES_PER_PARAMETER = 4


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
    """What jobs cost on this device: in seconds, in equivalents, on the disk."""

    total: int
    recipe: Recipe
    speed: Speed
    full_steps: int
    train_tokens: float
    tokens: Mapping[str, int]
    padded: Mapping[str, int]
    timed_tokens: int
    parameters: int
    layer_parameters: float

    @classmethod
    def of(
        cls, settings: SearchSettings, speed: Speed, task: EncodedTask, context: EvaluationContext
    ) -> EvaluationCosts:
        kind, lengths = context.device.kind, task.splits["train"].lengths
        steps = context.recipe.steps(len(lengths))
        layers = stored_config(context.folder)["facts"]["layer_parameters"]
        return cls(
            total=settings.total,
            recipe=context.recipe,
            speed=speed,
            full_steps=steps,
            train_tokens=float(np.mean(lengths)) * min(context.recipe.batch_size, len(lengths)) * steps,
            tokens={name: int(split.lengths.sum()) for name, split in task.splits.items()},
            padded={name: padded_tokens(split.lengths, kind) for name, split in task.splits.items()},
            timed_tokens=round(float(np.median(task.splits["held_out"].lengths)) * sum(TIMED_BATCHES)),
            parameters=parameters(loaded(context).pretrained),
            layer_parameters=statistics.fmean(layers),
        )

    def depth(self, job: Job) -> float:
        """Of this model, for a job of a rehearsal with perhaps another number of layers."""
        return job.key.layers.depth * self.total / job.key.layers.total

    def training(self, rung: float, depth: float) -> list[tuple[int, int]]:
        """The steps of each phase that leads to a model with so many layers, and the layers it has meanwhile."""
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
        """Answers and baseline on held_out with every seed, and the time they take, measured side by side."""
        scoring = (1 + answers) * seeds * self.evaluation_seconds("held_out", self.total) / workers
        timing = TIMED_ROUNDS * (1 + answers) * self.timed_tokens * self.speed.seconds("token", self.total)
        return scoring + min(timing, TIMED_SECONDS)

    def training_equivalents(self, job: Job) -> float:
        work = sum(steps * layers for steps, layers in self.training(job.key.rung, self.depth(job)))
        return work / (self.full_steps * self.total)

    def equivalents(self, job: Job) -> float:
        reading = self.tokens[job.split] / self.train_tokens * self.depth(job) / self.total
        return self.training_equivalents(job) + EVALUATION_COST * reading

    def disk_bytes(self, job: Job) -> float:
        """Weights of a confirmation; nothing to speak of for a screen."""
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
