"""The contract of strategies: checks that every strategy must pass, and a table with a known optimum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest

from budget_search.core.layers import LayerSet
from budget_search.core.trial import Tolerance, Trial, TrialKey
from budget_search.layer_search.strategies import propose
from budget_search.layer_search.strategies.problem import SearchProblem
from budget_search.simulation.replay import Table, play

BASELINE = 90.0
# The effects of twelve layers in points: lower layers matter most, some upper ones hardly. No sum of the smallest
# effects is near a whole delta, so every strategy that finds these layers finds the optimum.
EFFECTS = (2.6, 1.9, 0.31, 0.72, 0.17, 0.93, 0.12, 0.55, 0.23, 0.41, 0.83, 0.09)
SIMILARITIES = (0.5, 0.8, 0.86, 0.91, 0.93, 0.94, 0.96, 0.955, 0.92, 0.97, 0.85, 0.7)


def additive_table(effects: Sequence[float] = EFFECTS) -> Table:
    """All layer sets of a model whose layers have independent effects."""
    total = len(effects)
    sets = [
        LayerSet.dropping(dropped, total) for count in range(total) for dropped in combinations(range(total), count)
    ]
    trials = [trial_of(layers, BASELINE - sum(effects[index] for index in layers.dropped)) for layers in sets]
    return Table("additive", total, "accuracy", frozenset(range(1, total + 1)), {each.key: each for each in trials})


def trial_of(layers: LayerSet, score: float | None, **fields: Any) -> Trial:
    return Trial(TrialKey(layers, 1.0, 0), "selection", "failed" if score is None else "complete", score, **fields)


def baseline_of(table: Table) -> Trial:
    return table.trial(TrialKey(LayerSet.full(table.total), 1.0, 0))


def problem_for(table: Table, delta: float, **facts: Any) -> SearchProblem:
    score = baseline_of(table).score
    assert score is not None
    return SearchProblem(
        table.total, Tolerance(delta, {1.0: score}), **{"similarities": similarities_of(table), **facts}
    )


def similarities_of(table: Table) -> tuple[float, ...]:
    return SIMILARITIES[: table.total]


def optimum(table: Table, delta: float, fixed: Iterable[int] = ()) -> int:
    """The fewest layers within delta (points) that any recorded set has."""
    problem = problem_for(table, delta, fixed=frozenset(fixed))
    return min(
        trial.layers.depth
        for trial in table.trials.values()
        if trial.key.seed == 0 and problem.tolerance.allows(trial) and problem.allows(trial.layers)
    )


def check_run(name: str, table: Table, delta: float, **facts: Any) -> None:
    """Proposals are valid, new and within the evaluations; the strategy finishes with the smallest set that holds."""
    problem = problem_for(table, delta, **facts)
    history = [baseline_of(table)]
    rounds = 0
    while proposed := propose(name, history, problem):
        rounds += 1
        assert rounds <= 2**table.total, "does not finish"
        known = {trial.layers for trial in history}
        assert len(set(proposed)) == len(proposed), "proposes a set twice"
        assert not known & set(proposed), "proposes a measured set"
        for layers in proposed:
            assert layers.total == table.total
            assert not layers.is_full
            assert problem.fixed <= set(layers.kept), "drops a fixed layer"
        history += [table.trial(TrialKey(layers, 1.0, 0)) for layers in proposed]
    if name in ("auto", "optuna"):
        assert len(history) - 1 <= problem.evaluations
    holding = [trial.layers.depth for trial in history if problem.tolerance.allows(trial)]
    choice = play(name, table, delta, **{"similarities": similarities_of(table), **facts}).choice
    assert choice.depth == min(holding)
    assert problem.tolerance.allows(table.trial(TrialKey(choice, 1.0, 0)))


def check_resumes(name: str, table: Table, delta: float, **facts: Any) -> None:
    """A resumed run ends like an uninterrupted one, after any trial and for any order of the known trials."""
    facts = {"similarities": similarities_of(table), **facts}
    whole = play(name, table, delta, **facts)
    assert play(name, table, delta, **facts) == whole, "the same seed does not give the same answer"
    for stop in range(len(whole.trials)):
        resumed = play(name, table, delta, known=whole.trials[:stop][::-1], **facts)
        assert set(resumed.layers) == set(whole.layers), f"differs when resumed after {stop} trials"
        assert resumed.choice == whole.choice


def check_uses_failures(name: str, table: Table, delta: float, **facts: Any) -> None:
    """Failed trials neither break a strategy nor become its answer, even if all smaller sets fail."""
    problem = problem_for(table, delta, **facts)
    history = [baseline_of(table)]
    while proposed := propose(name, history, problem):
        history += [trial_of(layers, None) for layers in proposed]
        assert len(history) <= 2**table.total
    assert not any(problem.tolerance.allows(trial) for trial in history if not trial.layers.is_full)


def check_optimal(name: str, table: Table, delta: float, **facts: Any) -> None:
    """The choice has the smallest depth of all sets within delta."""
    choice = play(name, table, delta, **{"similarities": similarities_of(table), **facts}).choice
    if choice.depth != optimum(table, delta, facts.get("fixed", ())):
        pytest.fail(f"{name} keeps {choice} at delta {delta}; {optimum(table, delta)} layers are enough")
