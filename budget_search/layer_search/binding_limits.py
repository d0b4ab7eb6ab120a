"""Which limit stands between a search and a smaller answer: what its sets lose, and what holds beyond it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from budget_search.core.layers import LayerSet
from budget_search.core.limits import BindingLimit, Loss
from budget_search.layer_search.acquisition import all_sets

if TYPE_CHECKING:
    from budget_search.layer_search.state import SearchState


def binding(state: SearchState, delta: float) -> BindingLimit | None:
    """Why no set within the limits is within delta (points); None where one is, or where there are no limits.

    What was not measured is judged by the surrogate, and said to be expected.
    """
    settings = state.settings
    if not settings.limits.given or not state.answer(delta).is_full:
        return None
    everything = [layers for layers in all_sets(settings.total, settings.fixed, _measured(state)) if not layers.is_full]
    allowed = [layers for layers in everything if settings.limits.allow(layers)]
    beyond = _shallowest_beyond(state, [layers for layers in everything if not settings.limits.allow(layers)], delta)
    breaches = () if beyond is None else settings.limits.breaches(LayerSet(beyond.kept, settings.total))
    return BindingLimit(_best_within(state, allowed), beyond, breaches)


def _best_within(state: SearchState, sets: Sequence[LayerSet]) -> Loss | None:
    """What came nearest to holding: of the sets that were run in full, else of all."""
    confirmations = state.confirmations
    begun = [
        layers for layers in confirmations.begun if state.settings.limits.allow(layers) and confirmations.lost(layers)
    ]
    if begun:
        lost, best = min((statistics.fmean(confirmations.lost(layers)), layers) for layers in begun)
        return Loss(best.kept, best.depth, lost, "confirmation")
    return min(_expected(state, sets), key=lambda loss: (loss.degradation, loss.kept), default=None)


def _shallowest_beyond(state: SearchState, sets: Sequence[LayerSet], delta: float) -> Loss | None:
    """The fewest layers that hold, or are expected to, of sets that the limits forbid."""
    confirmations = state.confirmations
    holding = [layers for layers in confirmations.sets if layers in set(sets) and state.holds(layers, delta)]
    confirmed = [
        Loss(layers.kept, layers.depth, statistics.fmean(confirmations.lost(layers)), "confirmation")
        for layers in holding
    ]
    expected = [] if confirmed else [loss for loss in _expected(state, sets) if loss.degradation <= delta]
    return min(confirmed or expected, key=lambda loss: (loss.depth, loss.degradation, loss.kept), default=None)


def _expected(state: SearchState, sets: Sequence[LayerSet]) -> list[Loss]:
    if not state.screens.judged:
        return []
    losses = zip(sets, state.expected_losses(sets), strict=True)
    return [Loss(layers.kept, layers.depth, lost, "expected") for layers, lost in losses]


def _measured(state: SearchState) -> list[LayerSet]:
    return [trial.layers for trial in state.screens.judged]
