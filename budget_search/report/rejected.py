"""Find the smaller layer set that came closest to being accepted, and what would settle whether it holds."""

from __future__ import annotations

import statistics

from budget_search.core.layers import LayerSet
from budget_search.layer_search.confirmation import Confirmations
from budget_search.layer_search.settings import SearchSettings
from budget_search.layer_search.state import SearchState
from budget_search.report.entries import Reason, Rejected


def nearest_rejected(state: SearchState, answer: LayerSet, delta: float) -> Rejected | None:
    """The set with fewer layers than the answer that missed delta by least: a confirmed one if there is any."""
    settings = state.settings
    allow = settings.limits.allow
    confirmations = state.confirmations
    smaller = [layers for layers in confirmations.started if layers.depth < answer.depth and allow(layers)]
    tried = [each for each in smaller if confirmations.degradations(each) or confirmations.failed_run(each)]
    if settings.named:
        # The study may hold trials of other sets; the request does not ask about them.
        tried = [layers for layers in tried if layers in settings.named]
    if tried:
        return min((_rejected_confirmation(state, layers, delta) for layers in tried), key=_nearness)
    screens = state.screens
    tolerance = screens.tolerance(delta)
    if settings.named:
        return None
    screened = [trial for trial in screens.trials if trial.layers.depth < answer.depth and allow(trial.layers)]
    if not screened:
        return None
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


def _rejected_confirmation(state: SearchState, layers: LayerSet, delta: float) -> Rejected:
    settings, confirmations = state.settings, state.confirmations
    lost = confirmations.degradations(layers)
    degradation = counted = statistics.fmean(lost) if lost else None
    reason = _unconfirmed(confirmations, layers, delta)
    upper = within = None
    if reason is None and degradation is not None:
        judgement = state.judge(layers, delta)
        upper, reason = judgement.upper, "mean"
        if settings.criterion == "certified":
            counted = degradation if upper is None else upper
            if degradation <= delta:
                reason = "upper bound" if counted > delta or not judgement.collapsed else "collapsed"
        elif settings.criterion == "likely":
            estimate = state.estimate(layers)
            within = estimate.probability_within(delta)
            counted = max(degradation, estimate.quantile(settings.probability))
            reason = "probability" if degradation <= delta else "mean"
    return Rejected(
        kept=layers.kept,
        depth=layers.depth,
        stage="confirmation",
        degradation=degradation,
        degradation_upper=upper,
        missed_by=None if counted is None else counted - delta,
        would_settle=_remedy(reason or "mean", len(lost), settings, counted, delta),
        probability_within=within,
        reason=reason or "mean",
    )


def _unconfirmed(confirmations: Confirmations, layers: LayerSet, delta: float) -> Reason | None:
    """Why a set that was begun is not confirmed; None if it is."""
    if confirmations.failed_run(layers):
        return "failed"
    if confirmations.is_complete(layers):
        return None
    return "futile" if confirmations.is_futile(layers, delta) else "unfinished"


def _remedy(reason: Reason, seeds_run: int, settings: SearchSettings, counted: float | None, delta: float) -> str:
    seeds = len(settings.seeds)
    if reason == "failed":
        return "A lower learning rate may help."
    if reason == "futile":
        return f"It was stopped after {seeds_run} of {seeds} seeds: its mean was unlikely to fall within delta."
    if reason == "unfinished":
        return f"It was run with {seeds_run} of {seeds} seeds only."
    if reason != "collapsed" and counted is not None and counted - delta < 1:
        return f"More seeds may settle it: {settings.advice.seeds.format(seeds=max(3, 2 * seeds - 1))}."
    return ""


def _nearness(rejected: Rejected) -> tuple[float, int]:
    return (float("inf") if rejected.missed_by is None else rejected.missed_by, -rejected.depth)
