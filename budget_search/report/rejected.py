"""Find the smaller layer set that came closest to being accepted, and what would settle whether it holds."""

from __future__ import annotations

import statistics

from budget_search.core.layers import LayerSet
from budget_search.layer_search.settings import SearchSettings
from budget_search.layer_search.state import SearchState
from budget_search.report.entries import Rejected


def nearest_rejected(state: SearchState, answer: LayerSet, delta: float) -> Rejected | None:
    """The set with fewer layers than the answer that missed delta by least: a confirmed one if there is any."""
    settings = state.settings
    allow = settings.limits.allow
    tried = [layers for layers in state.confirmations.started if layers.depth < answer.depth and allow(layers)]
    if settings.named:
        # The study may hold trials of other sets; the request does not ask about them.
        tried = [layers for layers in tried if layers in settings.named]
    if tried:
        return min((_rejected_confirmation(state, layers, delta) for layers in tried), key=_nearness)
    screens = state.screens
    tolerance = screens.tolerance(delta)
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
    )


def _rejected_confirmation(state: SearchState, layers: LayerSet, delta: float) -> Rejected:
    settings, confirmations = state.settings, state.confirmations
    lost = confirmations.degradations(layers)
    degradation = counted = statistics.fmean(lost) if lost else None
    upper = within = None
    if degradation is not None and confirmations.is_complete(layers):
        upper = state.judge(layers, delta).upper
        if settings.criterion == "certified" and upper is not None:
            counted = upper
        elif settings.criterion == "likely":
            estimate = state.estimate(layers)
            within = estimate.probability_within(delta)
            counted = max(degradation, estimate.quantile(settings.probability))
    return Rejected(
        kept=layers.kept,
        depth=layers.depth,
        stage="confirmation",
        degradation=degradation,
        degradation_upper=upper,
        missed_by=None if counted is None else counted - delta,
        would_settle=_remedy(len(lost), settings, counted, delta),
        probability_within=within,
    )


def _remedy(seeds_run: int, settings: SearchSettings, counted: float | None, delta: float) -> str:
    seeds = len(settings.seeds)
    if counted is None:
        return "A lower learning rate may help."
    if seeds_run < seeds:
        return f"It was stopped after {seeds_run} of {seeds} seeds: its mean was unlikely to fall within delta."
    if counted - delta < 1:
        return f"More seeds may settle it: {settings.advice.seeds.format(seeds=2 * seeds - 1)}."
    return ""


def _nearness(rejected: Rejected) -> tuple[float, int]:
    return (float("inf") if rejected.missed_by is None else rejected.missed_by, -rejected.depth)
