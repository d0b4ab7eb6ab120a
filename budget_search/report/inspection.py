"""Compare measurements of single layers (probes, similarities) with the trials of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from budget_search.core.layers import LayerSet
from budget_search.core.serialization import OMIT_IF_NONE, to_plain
from budget_search.core.trial import Trial, TrialKey
from budget_search.layer_search.confirmation import Confirmations
from budget_search.layer_search.screening import Screens
from budget_search.layer_search.strategies.problem import SearchProblem
from budget_search.models.layer_measurements import LayerMeasurements
from budget_search.report.comparisons.measured_sets import MeasuredSet, measured_sets
from budget_search.report.report import Report

SCHEMA_VERSION = 1
# With fewer screens the surrogate cannot estimate the effects of single layers.
MIN_SCREENS = 6


@dataclass(frozen=True)
class Suggestion:
    """For one delta (a fraction), the depth that the probes suggest, beside the study's answer.

    ``lost`` are the points that the lowest ``depth`` layers lost, None if the study did not measure them;
    ``confirmed`` if it measured them in full.
    """

    delta: float
    depth: int
    answer_kept: tuple[int, ...]
    answer_depth: int
    verdict: str
    lost: float | None
    confirmed: bool


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation, over ``layers`` layers, between a measure and the cost of dropping the layer.

    ``chance`` is its two-sided p-value. Both are None if the measure is constant or there are too few layers.
    """

    measure: str
    layers: int
    correlation: float | None
    chance: float | None


@dataclass(frozen=True)
class Inspection:
    """The layer-wise measurements of a study's full model, with the study's results.

    ``costs`` are the points that the model is expected to lose without each layer, None for a layer that every
    measured set keeps. ``costs`` is None if the study screened too few sets.
    """

    study: str
    task: str
    model: str
    metric: str
    layers_total: int
    layerwise: LayerMeasurements
    suggestions: tuple[Suggestion, ...]
    costs: tuple[float | None, ...] | None = field(default=None, metadata=OMIT_IF_NONE)
    agreements: tuple[Agreement, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = to_plain(self)
        return fields


def inspection(report: Report, layerwise: LayerMeasurements) -> Inspection:
    """Combine the measurements of the layers with the answers and trials of the study."""
    costs = layer_costs(report)
    return Inspection(
        study=report.study,
        task=report.task,
        model=report.model,
        metric=report.metric,
        layers_total=report.layers_total,
        layerwise=layerwise,
        suggestions=tuple(_suggestions(report, layerwise)),
        costs=costs,
        agreements=() if costs is None else tuple(_agreements(layerwise, costs)),
    )


def probed_depth(probes: Sequence[float], delta: float) -> int:
    """The smallest depth whose probe is within ``delta`` (points) of the last probe."""
    return next(depth for depth in range(1, len(probes)) if probes[-1] - probes[depth] <= delta)


def layer_costs(report: Report) -> tuple[float | None, ...] | None:
    """Points that the model is expected to lose in full without each layer, by the surrogate of the search."""
    total = report.layers_total
    history = [
        Trial(TrialKey(LayerSet(row.kept, total), row.rung, row.seed), row.split, row.state, row.score)  # type: ignore[arg-type]
        for row in report.trials
    ]
    screened = [trial for trial in history if trial.split == "selection"]
    if not screened:
        return None
    seed = Counter(trial.key.seed for trial in screened).most_common(1)[0][0]
    screens = Screens(history, total, min(trial.rung for trial in screened), seed)
    judged = [trial for trial in screens.trials if not trial.layers.is_full and trial.state == "complete"]
    if len(judged) < MIN_SCREENS:
        return None
    full = LayerSet.full(total)
    seeds = [trial.key.seed for trial in history if trial.split == "certification" and trial.layers == full]
    confirmations = Confirmations(history, total, seeds)
    problem = SearchProblem(
        total=total,
        tolerance=screens.tolerance(0.0),
        full_runs=confirmations.full_runs,
        seed_sd=confirmations.seed_sd,
        seeds=len(seeds),
    )
    expected, _ = problem.surrogate(judged).predict([full.drop(index) for index in full.kept])
    dropped = {index for trial in judged for index in trial.layers.dropped}
    return tuple(float(lost) if index in dropped else None for index, lost in enumerate(expected))


def _suggestions(report: Report, layerwise: LayerMeasurements) -> Iterator[Suggestion]:
    known = {measured.kept: measured for measured in measured_sets(report)}
    for result in report.results:
        depth = probed_depth(layerwise.probes, 100 * result.delta)
        measured = _lowest(depth, report, known)
        yield Suggestion(
            delta=result.delta,
            depth=depth,
            answer_kept=result.kept,
            answer_depth=result.depth,
            verdict=result.verdict,
            lost=None if measured is None else measured.lost,
            confirmed=measured is not None and measured.confirmed,
        )


def _lowest(depth: int, report: Report, known: dict[tuple[int, ...], MeasuredSet]) -> MeasuredSet | None:
    kept = tuple(range(depth))
    if depth == report.layers_total:
        return MeasuredSet(kept, 1.0, report.baseline.score, 0.0, None, confirmed=True)
    return known.get(kept)


CHANGED = "changed by fine-tuning"
CHANGES = "changes its input (pre-trained)"
ADDS = "adds to the probe"


def _agreements(layerwise: LayerMeasurements, costs: Sequence[float | None]) -> Iterator[Agreement]:
    # Imported here: it takes seconds, and reports without an inspection do not need it.
    from scipy import stats

    probes = layerwise.probes
    measures = {
        CHANGED: [1 - cosine for cosine in layerwise.to_pretrained[1:]],
        CHANGES: [1 - cosine for cosine in layerwise.to_input],
        ADDS: [after - before for before, after in pairwise(probes)],
    }
    for name, values in measures.items():
        pairs = [(value, cost) for value, cost in zip(values, costs, strict=True) if cost is not None]
        if len({value for value, _ in pairs}) < 2 or len(pairs) < 3:
            yield Agreement(name, len(pairs), None, None)
        else:
            result = stats.spearmanr(*zip(*pairs, strict=True))
            yield Agreement(name, len(pairs), float(result.statistic), float(result.pvalue))
