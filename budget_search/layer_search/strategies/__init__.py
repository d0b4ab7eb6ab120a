"""The strategies, which propose layer sets: pure functions of the history, with one row each in ``STRATEGIES``.

``propose(history, problem)`` returns the layer sets to measure next, none of them measured already; an empty list means
that the strategy has finished. A strategy has no state of its own, so a resumed study needs no special case.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from typing import TYPE_CHECKING

from budget_search.core.errors import UsageError

if TYPE_CHECKING:
    from budget_search.core.layers import LayerSet
    from budget_search.core.trial import Trial
    from budget_search.layer_search.strategies.problem import SearchProblem, Strategy

# Name to ``module:function``, imported on first use, so that the command line lists the names without importing numpy.
STRATEGIES = {
    "auto": "auto:propose",
    "greedy": "greedy:propose",
    "optuna": "optuna:propose",
    "top": "fixed:top",
    "bottom": "fixed:bottom",
    "odd-alternate": "fixed:odd_alternate",
    "even-alternate": "fixed:even_alternate",
    "symmetric": "fixed:symmetric",
    "contribution": "fixed:contribution",
}
SAMPLERS = ("tpe", "gp", "nsga2", "random")
"""Optuna's samplers that the strategy ``optuna`` can use."""


def propose(name: str, history: Iterable[Trial], problem: SearchProblem) -> list[LayerSet]:
    """The layer sets that this strategy measures next; empty when it has finished. One trial per set, in any order.

    Raises UsageError for an unknown name, and what the strategy itself raises.
    """
    if name not in STRATEGIES:
        raise UsageError(f"unknown strategy {name!r}; allowed: {', '.join(STRATEGIES)}")
    strategy: Strategy = pkgutil.resolve_name(f"{__name__}.{STRATEGIES[name]}")
    return strategy(sorted(history, key=lambda trial: trial.key), problem)
