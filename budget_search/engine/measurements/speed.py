"""Measure how fast this device fine-tunes and evaluates this model on this task, with one layer and with all.

The batches come from the task, spread over its lengths, and run through the same code as a search.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from budget_search.engine.batches import reading_order, training_order
from budget_search.engine.evaluation import EvaluationContext, loaded, save_weights, split_of
from budget_search.engine.finetune import EVALUATION_TOKENS, predict, train_on
from budget_search.engine.last_layer import only_read_token
from budget_search.engine.schedule import Schedule
from budget_search.models.keep_layers import find_layers, keep_layers
from budget_search.models.pretrained import fresh_head
from budget_search.simulation.evaluation_costs import Speed

# Seconds that training steps of one depth may take, and how many there are in any case.
SECONDS_PER_DEPTH = 1.0
FEWEST_STEPS, MOST_STEPS = 3, 24
EVALUATION_BATCHES = 2
# Steps that are timed to see whether another lane of a GPU pays.
LANE_STEPS = 50
# Layers are alike: between these shares of the depth, time goes up along straight lines.
PROBED_SHARES = (0.0, 0.5, 1.0)


def probed_depths(total: int) -> list[int]:
    """One layer, half of them, all; ascending."""
    return sorted({max(1, round(share * total)) for share in PROBED_SHARES})


def measure_speed(context: EvaluationContext, total: int) -> Speed:
    """Time a few steps. Raises MemoryError if not even one example fits."""
    if context.device.kind == "cpu":
        torch.set_num_threads(1)
    loaded(context)
    # Layers are alike: between one and all of them time goes up along a straight line.
    depths = sorted({1, total})
    parts = {depth: _time_at(context, depth) for depth in reversed(depths)}
    building, step, token, writing = zip(*(parts[depth] for depth in depths), strict=True)
    return Speed(tuple(depths), building, step, token, writing)


def side_by_side(context: EvaluationContext) -> Callable[[int], float]:
    """Measures the steps per second, together, of so many fine-tunes of the full model, each by a thread of its own.

    The batches are of a middling length. Captures are not counted: they are kept, and the baseline uses them.
    """
    here, device = loaded(context), context.device
    train, recipe = split_of(context, "train"), context.recipe
    batches = _spread_batches(train.lengths, recipe.batch_size)
    middle = batches[len(batches) // 2]
    models: list[PreTrainedModel] = []

    def rate(lanes: int) -> float:
        while len(models) < lanes:
            models.append(keep_layers(here.pretrained, range(len(find_layers(here.pretrained)))))
            torch.nn.Module.to(models[-1], device.name)
        together = threading.Barrier(lanes)

        def run(model: PreTrainedModel, steps: int) -> None:
            together.wait()
            with only_read_token(model, here.tail):
                train_on(model, train, Schedule.over((middle,) * steps, recipe), recipe, 0, device)

        with ThreadPoolExecutor(lanes, "lane") as threads:
            list(threads.map(run, models, [1] * lanes))
            started = time.perf_counter()
            list(threads.map(run, models, [LANE_STEPS] * lanes))
            return lanes * LANE_STEPS / (time.perf_counter() - started)

    return rate


def mean_speed(speeds: Sequence[Speed]) -> Speed:
    """The mean speed of workers that measured at the same time, as they will run."""
    means = {
        part: tuple(np.mean([getattr(speed, part) for speed in speeds], axis=0).tolist())
        for part in ("building", "step", "token", "writing")
    }
    return dataclasses.replace(speeds[0], **means)


def padded_tokens(lengths: np.ndarray, device_kind: str) -> int:
    """The number of tokens, padding included, in an evaluation of examples of these lengths."""
    batches = reading_order(lengths, EVALUATION_TOKENS[device_kind])
    return sum(len(batch) * int(lengths[batch].max()) for batch in batches)


def _time_at(context: EvaluationContext, depth: int) -> tuple[float, float, float, float]:
    here, device = loaded(context), context.device
    started = time.perf_counter()
    model = keep_layers(here.pretrained, range(depth))
    fresh_head(model, here.fresh, 0)
    torch.nn.Module.to(model, device.name)
    device.synchronize()
    building = time.perf_counter() - started

    with only_read_token(model, here.tail):
        step = _step_seconds(context, model)
        token = _token_seconds(context, model)

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        save_weights(model, Path(folder) / "weights")
    return building, step, token, time.perf_counter() - started


def _step_seconds(context: EvaluationContext, model: PreTrainedModel) -> float:
    device, recipe = context.device, context.recipe
    train = split_of(context, "train")
    batches = _spread_batches(train.lengths, recipe.batch_size)
    longest = Schedule.over((batches[-1],), recipe)
    # Not counted: the first step allocates and chooses kernels.
    once = train_on(model, train, longest, recipe, 0, device).seconds
    count = min(max(round(SECONDS_PER_DEPTH / once), FEWEST_STEPS), MOST_STEPS, len(batches))
    spread = Schedule.over(tuple(batches[int((index + 0.5) * len(batches) / count)] for index in range(count)), recipe)
    if device.kind == "cuda":
        train_on(model, train, spread, recipe, 0, device)  # captures what a search captures once
    trained = train_on(model, train, spread, recipe, 0, device)
    return trained.seconds / trained.steps


def _token_seconds(context: EvaluationContext, model: PreTrainedModel) -> float:
    """Seconds per padded token of an evaluation."""
    device = context.device
    split = split_of(context, "selection")
    order = list(reading_order(split.lengths, EVALUATION_TOKENS[device.kind]))
    places = np.linspace(0, len(order) - 1, min(EVALUATION_BATCHES, len(order))).round().astype(int)
    examples = split.part(np.concatenate([order[place] for place in places]))
    predict(model, split.part(order[-1]), device)
    started = time.perf_counter()
    predict(model, examples, device)
    return (time.perf_counter() - started) / padded_tokens(examples.lengths, device.kind)


def _spread_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """One epoch's batches, those with the fewest padded tokens first."""
    batches = list(islice(training_order(lengths, batch_size, 0), -(-len(lengths) // batch_size)))
    whole = [batch for batch in batches if len(batch) == min(batch_size, len(lengths))]
    return sorted(whole, key=lambda batch: len(batch) * int(lengths[batch].max()))
