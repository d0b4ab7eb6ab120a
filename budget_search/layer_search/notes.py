"""Notes in the report on how a search went."""

from __future__ import annotations

from budget_search.core.formatting import plural
from budget_search.layer_search.learning import remarks
from budget_search.layer_search.state import SearchState


def notes(state: SearchState, *, ended_early: bool) -> list[str]:
    """Notes on the budget, the baseline and the screens. ``ended_early``: the search budget ended the search."""
    settings, screens, confirmations = state.settings, state.screens, state.confirmations
    told = []
    if ended_early:
        told.append(f"The search budget ({settings.advice.budget}) was spent before the search was finished.")
    seeds = confirmations.seeds_of(confirmations.full)
    told += remarks(state.gain(), state.failed_baseline_seeds(), seeds, settings.deltas)
    if settings.certify:
        told.append(
            f"Each uncertified answer was run with up to {plural(settings.certify, 'further seed')}, as long as these "
            "were likely to certify it. The error level is divided among the interim looks and the last look."
        )
    if not settings.named:
        told.append(
            f"Screens were fine-tunes of {screens.rung:.3g} of the recipe with one seed, scored on selection; "
            "no reported score uses them."
        )
        if screens.rung > settings.screen_rung:
            told.append(
                f"Screens of {settings.screen_rung:.3g} of the recipe ranked layer sets differently from runs "
                "twice as long, or were too short for the full model to learn the task, so they were lengthened."
            )
    return told
