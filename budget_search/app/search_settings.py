"""Derive the settings of a search from its request: the device, the measured limits, and all other settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from budget_search.app.resolve import ResolvedRequest, require_same_config
from budget_search.core.config import in_points
from budget_search.core.errors import StudyError
from budget_search.core.layers import LayerSet
from budget_search.core.limits import Limits
from budget_search.core.trial import SearchBudget
from budget_search.data.tokenization import EncodedTask
from budget_search.engine.device import Device, resolve_device
from budget_search.engine.evaluation import EvaluationContext, loaded, split_of
from budget_search.engine.measurements.cost import measure_inference, parameters, timed_batch
from budget_search.engine.measurements.speed import probed_depths
from budget_search.layer_search.settings import SearchSettings, screen_rung, screens_for
from budget_search.models.keep_layers import keep_layers
from budget_search.storage.files import write_json
from budget_search.storage.study_folder import StudyFolder, stored_config

LATENCY_SECONDS = 20.0
"""How long the latency is measured, over all depths."""


def study_device(resolved: ResolvedRequest) -> Device:
    """The device that ``auto`` stood for when the study was created, so that its trials stay comparable.

    If there is no study yet, the requested device. Raises UsageError and StudyError.
    """
    if not resolved.folder.config.exists():
        return resolve_device(resolved.config.device, resolved.config.precision)
    require_same_config(resolved)
    device = stored_config(resolved.folder)["facts"]["device"]
    return resolve_device(str(device["name"]), str(device["precision"]))


def evaluation_context(resolved: ResolvedRequest, folder: StudyFolder, device: Device) -> EvaluationContext:
    """What a worker needs to evaluate layer sets of the study in ``folder``."""
    pretrained, trust = resolved.pretrained, resolved.request.trust_remote_code
    return EvaluationContext(folder, pretrained.folder, pretrained.name, resolved.config.recipe, device, trust)


def search_settings(
    resolved: ResolvedRequest, facts: Mapping[str, Any], task: EncodedTask, limits: Limits, width: int
) -> SearchSettings:
    """Everything that is decided before the first evaluation; ``width`` evaluations run at a time.

    Raises UsageError for named layer sets that the model does not have.
    """
    request, recipe, total = resolved.request, resolved.config.recipe, int(facts["layers_total"])
    if resolved.warm_start:
        resolved.warm_start.require_depth(total)
    rung = screen_rung(recipe.steps(task.splits["train"].inputs))
    return SearchSettings(
        total=total,
        deltas=tuple(in_points(delta) for delta in request.deltas),
        strategy=request.strategy,
        seeds=request.confirmation_seeds,
        screen_seed=request.screen_seed,
        screen_rung=rung,
        evaluations=screens_for(rung, total),
        sampler=request.sampler,
        criterion=request.criterion,
        confidence=request.confidence,
        probability=request.probability,
        width=width,
        fixed=frozenset(facts["undroppable"]),
        limits=limits,
        start=resolved.warm_start.sets if resolved.warm_start else (),
        named=tuple(LayerSet.parse(text, total) for text in request.layers),
        budget=SearchBudget(request.max_trials, request.max_hours),
        recipe=recipe,
        certify=request.certify,
    )


def with_measured_limits(limits: Limits, facts: Mapping[str, Any], context: EvaluationContext) -> Limits:
    """The limits, with the sizes and latencies that their checks need. Raises UsageError for impossible limits."""
    total, undroppable = int(facts["layers_total"]), facts["undroppable"]
    limits.structural.require_possible(total, undroppable)
    if limits.max_params is not None:
        size = parameters(loaded(context).pretrained)
        limits = dataclasses.replace(
            limits, full_parameters=size, layer_parameters=tuple(map(int, facts["layer_parameters"]))
        )
    if limits.max_latency_ms is not None:
        limits = dataclasses.replace(limits, latency_ms=_latency(context, total))
    limits.require_possible(total, undroppable)
    return limits


def _latency(context: EvaluationContext, total: int) -> tuple[float, ...]:
    """Milliseconds to predict one example of the median length, per depth from one layer up, on the study's device.

    Measured once and kept with the study, so that an interrupted search resumes with the same limits.
    """
    path = context.folder.latency
    if not path.exists():
        write_json(path, {"device": context.device.name, "batch": 1, "ms": _measured_latency(context, total)})
    try:
        ms = json.loads(path.read_text(encoding="utf8"))["ms"]
        return tuple(float(ms[depth]) for depth in range(total))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise StudyError(
            f"latency.json of the study {context.folder.path.name} is damaged ({error}); "
            "delete it, and it will be measured again"
        ) from error


def _measured_latency(context: EvaluationContext, total: int) -> list[float]:
    """Measured at a few depths, interpolated between them."""
    if context.device.kind == "cpu":
        torch.set_num_threads(1)
    pretrained = loaded(context).pretrained
    depths = probed_depths(total)
    models = {str(depth): keep_layers(pretrained, range(depth)) for depth in reversed(depths)}
    for model in models.values():
        torch.nn.Module.to(model, context.device.name)
    batch = timed_batch(split_of(context, "held_out"), 1)
    timings = measure_inference(models, [batch], budget_seconds=LATENCY_SECONDS)
    medians = [timings[str(depth)][0].median_ms for depth in depths]
    return [float(ms) for ms in np.interp(range(1, total + 1), depths, np.maximum.accumulate(medians))]
