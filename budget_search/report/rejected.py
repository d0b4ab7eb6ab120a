"""Find the smaller layer set that came closest to being accepted, and what would settle whether it holds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from budget_search.core.layers import LayerSet
from budget_search.core.trial import Trial
from budget_search.layer_search.settings import SearchSettings
from budget_search.layer_search.state import SearchState
from budget_search.report.entries import Reason, Rejected


def nearest_rejected(state: SearchState, answer: LayerSet, delta: float) -> Rejected | None:
    """The set with fewer layers than the answer that missed delta by least: a confirmed one if there is any."""
    named, allow, confirmations = state.settings.named, state.settings.limits.allow, state.confirmations

    def is_asked_for(layers: LayerSet) -> bool:
        # If sets were named, the study may hold trials of others that the request does not ask about.
        return layers.depth < answer.depth and allow(layers) and (not named or layers in named)

    begun = filter(is_asked_for, confirmations.started)
    tried = [each for each in begun if confirmations.degradations(each) or confirmations.failed_run(each)]
    if tried:
        return min((_rejected_confirmation(state, layers, delta) for layers in tried), key=_nearness)
    screened = [] if named else [trial for trial in state.screens.trials if is_asked_for(trial.layers)]
    return _nearest_screen(state, screened, delta) if screened else None


def _nearest_screen(state: SearchState, screened: Sequence[Trial], delta: float) -> Rejected:
    tolerance = state.screens.tolerance(delta)
    nearest = min(screened, key=lambda trial: (tolerance.degradation(trial), -trial.layers.depth, trial.key))
    lost = None if nearest.score is None else tolerance.degradation(nearest)
    return Rejected(
        kept=nearest.layers.kept,
        depth=nearest.layers.depth,
        stage="screen",
        degradation=lost,
        degradation_upper=None,
        missed_by=None if lost is None else lost - delta,
        would_settle=state.settings.advice.confirm.format(layers=nearest.layers.compact),
        reason="screened",
    )


@dataclass(frozen=True)
class _Grounds:
    """Why a set is not accepted. ``statistic`` is what the criterion compares with delta, in points."""

    reason: Reason
    statistic: float | None
    upper: float | None = None
    probability_within: float | None = None


def _rejected_confirmation(state: SearchState, layers: LayerSet, delta: float) -> Rejected:
    lost = state.confirmations.degradations(layers)
    grounds = _grounds(state, layers, delta)
    return Rejected(
        kept=layers.kept,
        depth=layers.depth,
        stage="confirmation",
        degradation=statistics.fmean(lost) if lost else None,
        degradation_upper=grounds.upper,
        missed_by=None if grounds.statistic is None else grounds.statistic - delta,
        would_settle=_remedy(grounds, len(lost), state.settings, delta),
        probability_within=grounds.probability_within,
        reason=grounds.reason,
    )


def _grounds(state: SearchState, layers: LayerSet, delta: float) -> _Grounds:
    settings, confirmations = state.settings, state.confirmations
    degradations = confirmations.degradations(layers)
    lost = statistics.fmean(degradations) if degradations else None
    if confirmations.failed_run(layers):
        return _Grounds("failed", None)
    if lost is None or not confirmations.is_complete(layers):
        return _Grounds("futile" if confirmations.is_futile(layers, delta) else "unfinished", lost)
    upper = state.judge(layers, delta).upper
    if settings.criterion == "likely":
        estimate = state.estimate(layers)
        statistic = max(lost, estimate.quantile(settings.probability))
        reason: Reason = "mean" if lost > delta else "probability"
        return _Grounds(reason, statistic, upper, estimate.probability_within(delta))
    if settings.criterion == "observed" or upper is None:
        return _Grounds("mean", lost, upper)
    return _Grounds("mean" if lost > delta else "upper bound" if upper > delta else "collapsed", upper, upper)


def _remedy(grounds: _Grounds, seeds_run: int, settings: SearchSettings, delta: float) -> str:
    seeds = len(settings.seeds)
    if grounds.reason == "failed":
        return "A lower learning rate may help."
    if grounds.reason == "futile":
        return f"It was stopped after {seeds_run} of {seeds} seeds: its mean was unlikely to fall within delta."
    if grounds.reason == "unfinished":
        return f"It was run with {seeds_run} of {seeds} seeds only."
    if grounds.reason != "collapsed" and grounds.statistic is not None and grounds.statistic - delta < 1:
        return f"More seeds may settle it: {settings.advice.seeds.format(seeds=max(3, 2 * seeds - 1))}."
    return ""


def _nearness(rejected: Rejected) -> tuple[float, int]:
    return (float("inf") if rejected.missed_by is None else rejected.missed_by, -rejected.depth)
