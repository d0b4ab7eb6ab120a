"""After the search: score the answers on held_out, measure size and speed, delete weights that no answer needs."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, TrialKey
from budget_search.engine.batches import DeviceSplit
from budget_search.engine.evaluation import load_weights, split_of
from budget_search.engine.measurements.cost import (
    TIMED_BATCHES,
    TIMED_SECONDS,
    Throughput,
    Timing,
    flops,
    launch_share,
    measure_inference,
    measure_throughput,
    parameters,
    replayed_seconds,
    timed_batch,
)
from budget_search.engine.measurements.peak_throughput import measure_peak
from budget_search.models.pretrained import quiet_transformers
from budget_search.report.builder import ModelMeasurements
from budget_search.report.inference import InferencePoint, Interval, PeakThroughput, Quantiles, ThroughputPoint

if TYPE_CHECKING:
    from budget_search.engine.parallel.workers import Workers
    from budget_search.layer_search.state import SearchState
    from budget_search.storage.study_folder import StudyFolder

THROUGHPUT_BATCH = 32


def measure_answers(
    workers: Workers, state: SearchState, answers: Mapping[float, LayerSet]
) -> dict[LayerSet, ModelMeasurements]:
    """Score the baseline and every answer on held_out; measure size, arithmetic and speed of one model of each."""
    quiet_transformers()
    context, full = workers.context, LayerSet.full(state.settings.total)
    sets = [full, *sorted({*answers.values()} - {full})]
    confirmed = {layers: state.confirmations.seeds_of(layers) for layers in sets}
    workers.score([TrialKey(layers, FULL_RUNG, seed) for layers in sets for seed in confirmed[layers]])
    if context.device.kind == "cpu":
        torch.set_num_threads(1)
    seeds = {layers: state.confirmations.median_seed(layers) for layers in sets}
    models = {str(layers): load_weights(context, TrialKey(layers, FULL_RUNG, seed)) for layers, seed in seeds.items()}
    split = split_of(context, "held_out")
    batches = [timed_batch(split, size) for size in TIMED_BATCHES]
    timings = measure_inference(models, batches, budget_seconds=TIMED_SECONDS)
    speeds = measure_throughput(models, _random_batches(split, THROUGHPUT_BATCH), budget_seconds=TIMED_SECONDS)
    # A core is full with 32 examples.
    peaks = measure_peak(models, batches[-1]) if context.device.kind == "cuda" else {}
    return {
        layers: ModelMeasurements(
            parameters=parameters(models[str(layers)]),
            flops=flops(models[str(layers)], batches[0]),
            inference=tuple(
                _inference_point(timing, replayed_seconds(models[str(layers)], batch))
                for timing, batch in zip(timings[str(layers)], batches, strict=True)
            ),
            throughput=_throughput_point(speeds[str(layers)]) if speeds else None,
            peak_throughput=_peak_point(peaks[str(layers)]) if peaks else None,
        )
        for layers in sets
    }


def delete_unneeded_weights(folder: StudyFolder, state: SearchState, answers: Iterable[LayerSet]) -> None:
    """Delete the weights of sets that cannot become an answer: another confirmed set is as small and loses less."""
    confirmations = state.confirmations
    lost = {layers: statistics.fmean(confirmations.degradations(layers)) for layers in confirmations.sets}
    useful = [
        layers
        for layers in lost
        if not any(
            other.depth <= layers.depth and (lost[other], other.depth, other) < (lost[layers], layers.depth, layers)
            for other in lost
        )
    ]
    keep = {
        folder.weights(TrialKey(layers, FULL_RUNG, seed)).name
        for layers in (confirmations.full, *useful, *answers)
        for seed in confirmations.seeds_of(layers)
    }
    if state.settings.builds_on_full:
        # Smaller models of a later search are cut from these, or learn from them.
        keep |= {folder.weights(trial.key).name for trial in state.history if trial.layers.is_full}
    for path in folder.path.glob("weights/*"):
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)


def _random_batches(split: DeviceSplit, size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Every example once, in random order."""
    order = np.random.default_rng(0).permutation(split.examples)
    return (split.batch(order[start : start + size]) for start in range(0, len(order), size))


def _inference_point(timing: Timing, replayed: float | None) -> InferencePoint:
    """The measurement as the report shows it."""
    return InferencePoint(
        batch=timing.batch,
        length=timing.length,
        ms=Quantiles(timing.median_ms, timing.low_ms, timing.high_ms),
        saved=None if timing.saved is None else Interval(*timing.saved),
        device=timing.device,
        dtype=timing.dtype,
        threads=timing.threads,
        rounds=timing.rounds,
        peak_bytes=timing.peak_bytes,
        launch_share=launch_share(timing.median_ms / 1000, replayed),
    )


def _throughput_point(measured: Throughput) -> ThroughputPoint:
    return ThroughputPoint(
        batch=measured.batch,
        examples=measured.examples,
        examples_per_second=measured.examples / measured.seconds,
        saved=None if measured.saved is None else Interval(*measured.saved),
    )


def _peak_point(timing: Timing) -> PeakThroughput:
    return PeakThroughput(
        batch=timing.batch,
        length=timing.length,
        examples_per_second=1000 * timing.batch / timing.median_ms,
        saved=None if timing.saved is None else Interval(*timing.saved),
    )
