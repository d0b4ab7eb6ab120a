"""One short fine-tune as a plain training loop: no callbacks, no checkpoints, no state except the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from budget_search.core.config import Recipe
from budget_search.engine.batches import DeviceSplit, reading_order
from budget_search.engine.cpu_kernels import cpu_kernels
from budget_search.engine.device import Device
from budget_search.engine.gpu.host_values import CaptureRefusedError
from budget_search.engine.gpu.lane_pool import end_if_abandoned
from budget_search.engine.gpu.lanes import lanes_of
from budget_search.engine.loss import logits_of
from budget_search.engine.optimizer import rounded_weights
from budget_search.engine.schedule import Schedule
from budget_search.engine.training_step import EagerSteps, Steps
from budget_search.engine.used_embeddings import only_occurring_rows
from budget_search.models.layer_training import skipping_layers

# How many steps may pass before a loss that is not a number is noticed: looking at it waits for the device.
STEPS_BETWEEN_CHECKS = 25
# Padded tokens of an evaluation batch: larger than a training batch, since no gradients are kept; on a CPU no larger
# than what its caches hold.
EVALUATION_TOKENS = {"cpu": 1_024, "cuda": 65_536, "mps": 16_384}


class DivergedError(Exception):
    """The loss became infinite or not a number."""


@dataclass(frozen=True)
class FineTuned:
    """The cost of a fine-tune. ``tokens`` are its training tokens without padding; ``execution`` is "graph", or "eager"
    with the reason on a GPU."""

    seconds: float
    steps: int
    tokens: int
    execution: str = "eager"


def fine_tune(
    model: PreTrainedModel, train: DeviceSplit, recipe: Recipe, rung: float, seed: int, device: Device
) -> FineTuned:
    """Train ``model`` in place on a fraction ``rung`` of the recipe's steps, with a complete schedule of its own.

    The seed fixes the order of the data, dropout, and the skipping of layers. Frozen parameters stay
    unchanged. Raises DivergedError; MemoryError when one example at a time does not fit; UnsupportedModelError for a
    model that cannot skip layers.
    """
    return train_on(model, train, Schedule.of(recipe, train.lengths, rung, seed), recipe, seed, device)


def train_on(
    model: PreTrainedModel, train: DeviceSplit, schedule: Schedule, recipe: Recipe, seed: int, device: Device
) -> FineTuned:
    """Train ``model`` in place on the batches of a schedule. Raises as ``fine_tune`` does."""
    started = time.perf_counter()
    model.train()
    with (
        skipping_layers(model, recipe.layer_drop),
        only_occurring_rows(model, train.vocabulary),
        _steps(model, train, schedule, recipe, seed, device) as (steps, execution),
    ):
        for number in range(schedule.steps):
            steps.run(number)
            done = number + 1
            if done % STEPS_BETWEEN_CHECKS == 0 or done == schedule.steps:
                end_if_abandoned()
                if not math.isfinite(loss := steps.loss()):
                    raise DivergedError(f"the loss was {loss} after {done} of {schedule.steps} steps")
    device.synchronize()
    tokens = sum(int(train.lengths[batch].sum()) for batch in schedule.batches)
    return FineTuned(time.perf_counter() - started, schedule.steps, tokens, execution)


@contextmanager
def _steps(
    model: PreTrainedModel, train: DeviceSplit, schedule: Schedule, recipe: Recipe, seed: int, device: Device
) -> Iterator[tuple[Steps, str]]:
    """The steps as they are run here, and how: replayed from graphs on a GPU, or one operation after the other."""
    lanes = lanes_of(device)
    if lanes is None:
        with rounded_weights(model, device) as rounded:
            yield EagerSteps(model, train, recipe, schedule, seed, device, rounded), "eager"
        return
    with lanes.borrow(model, train, recipe) as lane:
        try:
            captured = lane.prepared(model, train, recipe, schedule)
        except CaptureRefusedError as refusal:
            with lane.recorder.alone():
                yield EagerSteps(model, train, recipe, schedule, seed, device, {}), f"eager: {refusal}"
        else:
            with captured.training(model, schedule, seed):
                yield captured, "graph"


def predict(model: PreTrainedModel, split: DeviceSplit, device: Device) -> np.ndarray:
    """Logits in the order of the examples: float32 (examples, classes or 1), or (labelled tokens, classes)."""
    model.eval()
    tokens_per_batch = EVALUATION_TOKENS[device.kind]
    order: list[np.ndarray] = []
    logits: list[torch.Tensor] = []
    with torch.inference_mode(), cpu_kernels(device), device.autocast():
        for indices in reading_order(split.lengths, tokens_per_batch):
            order.append(indices)
            read = logits_of(model(**split.batch(indices))).float()
            if split.per_token:
                read = read[split.labelled(split.rows(indices), split.longest(indices))]
            logits.append(read)
    return split.in_order(torch.cat(logits), np.concatenate(order))
