"""What proposes layer sets: pure functions of the history.

A strategy answers ``propose(history, question)``: the layer sets to measure next, none of them measured already; an
empty list means that it has finished. It keeps nothing between calls, so a resumed study is the normal case.
"""

from __future__ import annotations

from collections.abc import Iterable

from budget_search.errors import UsageError
from budget_search.layers import FAMILIES, LayerSet
from budget_search.strategies import auto, fixed, greedy, optuna
from budget_search.strategies.question import Question, Strategy, smallest_holding
from budget_search.trial import Trial

__all__ = ["SAMPLERS", "STRATEGIES", "Question", "Strategy", "propose", "smallest_holding"]

SAMPLERS = optuna.SAMPLERS
STRATEGIES: dict[str, Strategy] = {
    "auto": auto.propose,
    "greedy": greedy.propose,
    "optuna": optuna.propose,
    **{name: fixed.family(name) for name in FAMILIES},
    "contribution": fixed.contribution,
}


def propose(name: str, history: Iterable[Trial], question: Question) -> list[LayerSet]:
    """What the strategy of this name measures next, given one trial per layer set in any order; empty when finished.

    Raises UsageError for an unknown name, and what the strategy itself raises.
    """
    if name not in STRATEGIES:
        raise UsageError(f"unknown strategy {name!r}; allowed: {', '.join(STRATEGIES)}")
    return STRATEGIES[name](sorted(history, key=lambda trial: trial.key), question)
