"""After the search: score the answers on held_out, measure what they cost to run, write the report."""

from __future__ import annotations

import datetime
import shutil
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from budget_search.batches import DeviceSplit
from budget_search.cost import flops, measure_inference, measure_throughput, parameters
from budget_search.evaluate import load_weights, split_of
from budget_search.layers import LayerSet
from budget_search.parent import quiet_transformers
from budget_search.report import (
    SCHEMA_VERSION,
    InferencePoint,
    Reference,
    Report,
    Resolution,
    SplitSummary,
    ThroughputPoint,
)
from budget_search.summary import Measured, Summary
from budget_search.trial import FULL_RUNG, TrialKey

if TYPE_CHECKING:
    from budget_search.dispatch import Workers
    from budget_search.encode import EncodedTask
    from budget_search.findings import Findings
    from budget_search.store import StudyFolder

# Batch sizes that inference is timed with; 32 is the paper's (Table 3).
TIMED_BATCHES = (1, 32)
READING_BATCH = 32
TIMED_SECONDS = 20.0


def measure_answers(
    workers: Workers, findings: Findings, answers: Mapping[float, LayerSet]
) -> dict[LayerSet, Measured]:
    """Score the baseline and every answer on held_out; measure their size, arithmetic and speed, side by side."""
    quiet_transformers()
    workplace, full = workers.workplace, LayerSet.full(findings.plan.total)
    sets = [full, *sorted({*answers.values()} - {full})]
    workers.score([TrialKey(layers, FULL_RUNG, seed) for layers in sets for seed in findings.plan.seeds])
    if workplace.device.kind == "cpu":
        torch.set_num_threads(1)
    seeds = {layers: findings.confirmations.median_seed(layers) for layers in sets}
    models = {str(layers): load_weights(workplace, TrialKey(layers, FULL_RUNG, seed)) for layers, seed in seeds.items()}
    split = split_of(workplace, "held_out")
    batches = [timed_batch(split, size) for size in TIMED_BATCHES]
    timings = measure_inference(models, batches, budget_seconds=TIMED_SECONDS)
    speeds = measure_throughput(models, _random_batches(split, READING_BATCH), budget_seconds=TIMED_SECONDS)
    return {
        layers: Measured(
            parameters=parameters(models[str(layers)]),
            flops=flops(models[str(layers)], batches[0]),
            inference=tuple(InferencePoint.of(timing) for timing in timings[str(layers)]),
            throughput=ThroughputPoint.of(speeds[str(layers)]) if speeds else None,
        )
        for layers in sets
    }


def prune_weights(folder: StudyFolder, findings: Findings, answers: Iterable[LayerSet]) -> None:
    """Delete the weights of sets that cannot become an answer: another confirmed set is as small and loses less."""
    confirmations = findings.confirmations
    lost = {layers: statistics.fmean(confirmations.lost(layers)) for layers in confirmations.sets}
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
        for seed in findings.plan.seeds
    }
    if findings.plan.builds_on_full:
        # What smaller models were cut from or learnt from, they may be again.
        keep |= {folder.weights(trial.key).name for trial in findings.history if trial.layers.is_full}
    for path in folder.path.glob("weights/*"):
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)


def build_report(
    *,
    summary: Summary,
    task: EncodedTask,
    answers: Mapping[float, LayerSet],
    identity: Mapping[str, Any],
    wall_seconds: float,
    notes: Sequence[str],
    references: Sequence[Reference] = (),
) -> Report:
    """``identity`` holds the report's fields that say which study this is."""
    smallest = summary.resolution.smallest_certifiable_delta
    return Report(
        schema_version=SCHEMA_VERSION,
        metric=task.metric,
        layers_total=summary.total,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        splits={name: SplitSummary(split.examples, task.label_shares(name)) for name, split in task.splits.items()},
        baseline=summary.baseline(),
        results=tuple(summary.result(delta, layers) for delta, layers in sorted(answers.items())),
        frontier=tuple(summary.frontier()),
        trials=tuple(summary.trial_rows()),
        cost=summary.cost(list(answers.values()), wall_seconds),
        resolution=Resolution(None if smallest is None else smallest / 100, summary.resolution.explanation),
        notes=(*task.notes, *notes),
        references=tuple(references),
        **identity,
    )


def timed_batch(split: DeviceSplit, size: int) -> dict[str, torch.Tensor]:
    """Real examples around the median length, the longest of them deciding the padding as in real use."""
    middle = np.argsort(split.lengths, kind="stable")
    start = max(0, (len(middle) - size) // 2)
    return split.batch(middle[start : start + size])


def _random_batches(split: DeviceSplit, size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Every example once."""
    order = np.random.default_rng(0).permutation(split.examples)
    return (split.batch(order[start : start + size]) for start in range(0, len(order), size))
