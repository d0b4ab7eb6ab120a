"""How large and how fast a study's model is at every depth: what the limits on the answer are checked by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from budget_search.core.errors import StudyError
from budget_search.core.limits import Limits
from budget_search.engine.cost import measure_inference, parameters, timed_batch
from budget_search.engine.evaluation import EvaluationContext, loaded, split_of
from budget_search.engine.speed import probed_depths
from budget_search.models.keep_layers import keep_layers
from budget_search.storage.files import write_json

PROBE_SECONDS = 20.0


def with_measured_limits(limits: Limits, facts: Mapping[str, Any], context: EvaluationContext) -> Limits:
    """The limits with what has to be known of the model to check them. Raises UsageError for impossible ones."""
    total, undroppable = int(facts["layers_total"]), facts["undroppable"]
    limits.structural.require_possible(total, undroppable)
    if limits.max_params is not None:
        size = parameters(loaded(context).pretrained)
        limits = dataclasses.replace(
            limits, full_parameters=size, layer_parameters=tuple(map(int, facts["layer_parameters"]))
        )
    if limits.max_latency_ms is not None:
        limits = dataclasses.replace(limits, latency_ms=latency(context, total))
    limits.require_possible(total, undroppable)
    return limits


def latency(context: EvaluationContext, total: int) -> tuple[float, ...]:
    """Milliseconds to predict one example of the median length, per depth from one layer up, on the study's device.

    Timed once and kept with the study, so that a search that goes on asks what it asked before.
    """
    path = context.folder.latency
    if not path.exists():
        write_json(path, {"device": context.device.name, "batch": 1, "ms": _timed(context, total)})
    try:
        ms = json.loads(path.read_text(encoding="utf8"))["ms"]
        return tuple(float(ms[depth]) for depth in range(total))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise StudyError(
            f"latency.json of the study {context.folder.path.name} is damaged ({error}); "
            "delete it, and it will be measured again"
        ) from error


def _timed(context: EvaluationContext, total: int) -> list[float]:
    if context.device.kind == "cpu":
        torch.set_num_threads(1)
    pretrained = loaded(context).pretrained
    depths = probed_depths(total)
    models = {str(depth): keep_layers(pretrained, range(depth)) for depth in reversed(depths)}
    for model in models.values():
        torch.nn.Module.to(model, context.device.name)
    batch = timed_batch(split_of(context, "held_out"), 1)
    timings = measure_inference(models, [batch], budget_seconds=PROBE_SECONDS)
    medians = [timings[str(depth)][0].median_ms for depth in depths]
    return [float(ms) for ms in np.interp(range(1, total + 1), depths, np.maximum.accumulate(medians))]
