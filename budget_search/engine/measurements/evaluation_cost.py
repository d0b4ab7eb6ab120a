"""The cost of evaluations on this device: seconds from a timed probe, equivalents, and bytes on disk."""

from __future__ import annotations

import statistics

import numpy as np

from budget_search.data.tokenization import EncodedTask
from budget_search.engine.evaluation import EvaluationContext, loaded
from budget_search.engine.measurements.cost import TIMED_BATCHES, TIMED_SECONDS, parameters
from budget_search.engine.measurements.speed import padded_tokens
from budget_search.layer_search.settings import SearchSettings
from budget_search.simulation.evaluation_costs import EvaluationCosts, Speed
from budget_search.storage.study_folder import stored_config


def evaluation_costs(
    settings: SearchSettings, speed: Speed, task: EncodedTask, context: EvaluationContext
) -> EvaluationCosts:
    """The cost of a study's evaluations on a device of this speed."""
    kind, lengths = context.device.kind, task.splits["train"].lengths
    steps = context.recipe.steps(len(lengths))
    layers = stored_config(context.folder)["facts"]["layer_parameters"]
    return EvaluationCosts(
        total=settings.total,
        recipe=context.recipe,
        speed=speed,
        full_steps=steps,
        train_tokens=float(np.mean(lengths)) * min(context.recipe.batch_size, len(lengths)) * steps,
        tokens={name: int(split.lengths.sum()) for name, split in task.splits.items()},
        padded={name: padded_tokens(split.lengths, kind) for name, split in task.splits.items()},
        timed_tokens=round(float(np.median(task.splits["held_out"].lengths)) * sum(TIMED_BATCHES)),
        timing_seconds=TIMED_SECONDS,
        parameters=parameters(loaded(context).pretrained),
        layer_parameters=statistics.fmean(layers),
    )
