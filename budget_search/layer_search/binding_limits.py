"""Which limit stands between a search and a smaller answer: what its sets lose, and what holds beyond it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from budget_search.core.layers import LayerSet
from budget_search.core.limits import Binding, Loss
from budget_search.layer_search.acquisition import all_sets

if TYPE_CHECKING:
    from budget_search.layer_search.state import Findings


def binding(findings: Findings, delta: float) -> Binding | None:
    """Why no set within the limits is within delta (points); None where one is, or where there are no limits.

    What was not measured is judged by the surrogate, and said to be expected.
    """
    plan = findings.plan
    if not plan.limits.asked or not findings.answer(delta).is_full:
        return None
    everything = [layers for layers in all_sets(plan.total, plan.fixed, _measured(findings)) if not layers.is_full]
    allowed = [layers for layers in everything if plan.limits.allow(layers)]
    beyond = _shallowest_beyond(findings, [layers for layers in everything if not plan.limits.allow(layers)], delta)
    breaches = () if beyond is None else plan.limits.breaches(LayerSet(beyond.kept, plan.total))
    return Binding(_best_within(findings, allowed), beyond, breaches)


def _best_within(findings: Findings, sets: Sequence[LayerSet]) -> Loss | None:
    """What came nearest to holding: of the sets that were run in full, else of all."""
    confirmations = findings.confirmations
    begun = [
        layers for layers in confirmations.begun if findings.plan.limits.allow(layers) and confirmations.lost(layers)
    ]
    if begun:
        lost, best = min((statistics.fmean(confirmations.lost(layers)), layers) for layers in begun)
        return Loss(best.kept, best.depth, lost, "confirmation")
    return min(_expected(findings, sets), key=lambda loss: (loss.degradation, loss.kept), default=None)


def _shallowest_beyond(findings: Findings, sets: Sequence[LayerSet], delta: float) -> Loss | None:
    """The fewest layers that hold, or are expected to, of sets that the limits forbid."""
    confirmations = findings.confirmations
    holding = [layers for layers in confirmations.sets if layers in set(sets) and findings.holds(layers, delta)]
    confirmed = [
        Loss(layers.kept, layers.depth, statistics.fmean(confirmations.lost(layers)), "confirmation")
        for layers in holding
    ]
    expected = [] if confirmed else [loss for loss in _expected(findings, sets) if loss.degradation <= delta]
    return min(confirmed or expected, key=lambda loss: (loss.depth, loss.degradation, loss.kept), default=None)


def _expected(findings: Findings, sets: Sequence[LayerSet]) -> list[Loss]:
    if not findings.screens.judged:
        return []
    losses = zip(sets, findings.expected_losses(sets), strict=True)
    return [Loss(layers.kept, layers.depth, lost, "expected") for layers, lost in losses]


def _measured(findings: Findings) -> list[LayerSet]:
    return [trial.layers for trial in findings.screens.judged]
