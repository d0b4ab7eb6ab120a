"""From a request to the plan of its search: everything that is decided before the first evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from budget_search.core.config import in_points

if TYPE_CHECKING:
    from budget_search.app.resolve import ResolvedRequest
    from budget_search.core.limits import Limits
    from budget_search.data.tokenization import EncodedTask
    from budget_search.layer_search.settings import SearchSettings


def search_settings(
    found: ResolvedRequest, facts: Mapping[str, Any], task: EncodedTask, limits: Limits, width: int
) -> SearchSettings:
    """Everything the search decides beforehand. Raises UsageError for named layer sets the model does not have."""
    from budget_search.core.layers import LayerSet
    from budget_search.core.trial import SearchBudget
    from budget_search.layer_search.settings import SearchSettings, screen_rung, screens_for

    request, recipe, total = found.request, found.config.recipe, int(facts["layers_total"])
    if found.warm_start:
        found.warm_start.require_depth(total)
    rung = screen_rung(recipe.steps(task.splits["train"].examples))
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
        width=width,
        fixed=frozenset(facts["undroppable"]),
        limits=limits,
        start=found.warm_start.sets if found.warm_start else (),
        named=tuple(LayerSet.parse(text, total) for text in request.layers),
        budget=SearchBudget(request.max_trials, request.max_hours),
        recipe=recipe,
    )
