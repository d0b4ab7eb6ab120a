"""From a request to the plan of its search: everything that is decided before the first evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from budget_search.encode import EncodedTask
    from budget_search.limits import Limits
    from budget_search.location import Found
    from budget_search.plan import Plan

# Screens: as short as still ranks layer sets, in steps and as a fraction of the recipe. On a recorded 6-layer table 31
# steps ranked sets alike whatever the seed, and wrongly; 125 steps ranked them well.
SCREEN_STEPS = 150
SHORTEST_RUNG = 1 / 24
LONGEST_RUNG = 1 / 2
# What is spent on screens in all, in full fine-tunes, when a screened set keeps this share of the layers.
SCREEN_EQUIVALENTS = 2.0
MEAN_SHARE_OF_LAYERS = 0.58
MOST_SCREENS = 60


def plan_for(found: Found, facts: Mapping[str, Any], task: EncodedTask, limits: Limits, width: int) -> Plan:
    """Everything the search decides beforehand. Raises UsageError for named layer sets the model does not have."""
    from budget_search.layers import LayerSet
    from budget_search.plan import Plan
    from budget_search.trial import SearchBudget

    request, recipe, total = found.request, found.config.recipe, int(facts["layers_total"])
    if found.heritage:
        found.heritage.require_depth(total)
    rung = screen_rung(recipe.steps(task.splits["train"].examples))
    return Plan(
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
        start=found.heritage.sets if found.heritage else (),
        named=tuple(LayerSet.parse(text, total) for text in request.layers),
        budget=SearchBudget(request.max_trials, request.max_hours),
        recipe=recipe,
    )


def in_points(delta: float) -> float:
    """A fraction as points, without the crumbs of 100 * 0.07."""
    return round(100 * delta, 10)


def screen_rung(full_steps: int) -> float:
    """The fraction of the recipe that a screen gets: enough steps to say something, half at the most."""
    return min(LONGEST_RUNG, max(SHORTEST_RUNG, SCREEN_STEPS / full_steps))


def screens_for(rung: float, total: int) -> int:
    """How many layer sets are screened at this rung: for about two full fine-tunes, but never very few or many."""
    from budget_search.plan import FEWEST_SCREENS

    screens = round(SCREEN_EQUIVALENTS / (rung * MEAN_SHARE_OF_LAYERS))
    return min(max(screens, FEWEST_SCREENS), MOST_SCREENS, 2**total - 2)
