"""The default: a cheap first answer from the fixed families, then the likeliest sets one layer below it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from budget_search.layers import LayerSet
from budget_search.strategies.fixed import family_set
from budget_search.strategies.optuna import ask
from budget_search.strategies.question import Question, smallest_holding, unmeasured
from budget_search.trial import Trial

LADDER = ("top", "odd-alternate", "even-alternate", "symmetric")
OPTUNA_EVERY = 3
"""Every third set below the first answer is Optuna's, for what an additive estimate cannot see."""
RIDGE = 1.0
"""Squared noise of a screen over the squared spread of the layers' effects."""


def propose(history: Sequence[Trial], question: Question) -> list[LayerSet]:
    """Bisect the depth on the fixed families, then search below the smallest set that holds.

    Finished when ``question.evaluations`` are measured, or when every set one layer smaller than the smallest that
    holds has been measured and none of them holds.
    """
    return (first_answer(history, question) or below(history, question))[: question.room(history)]


def first_answer(history: Sequence[Trial], question: Question) -> list[LayerSet]:
    """Up to ``width`` sets of the bisection's current depth; empty once the boundary is found.

    Half of the layers come first, because sets that drop several layers tell more about a budget than sets that drop
    one. A depth holds as soon as one of its families does, and fails when all of them have.
    """
    holding = {trial.layers for trial in history if question.tolerance.holds(trial)}
    low, high = 0, question.total - 1
    while low < high:
        dropped = (low + high + 1) // 2
        families = [each for name in LADDER for each in family_set(name, dropped, question)]
        missing = unmeasured(families, history, question)
        if any(each in holding for each in families):
            low = dropped
        elif missing:
            return missing[: question.width]
        else:
            high = dropped - 1
    return []


def below(history: Sequence[Trial], question: Question) -> list[LayerSet]:
    """Up to ``width`` sets with one layer less than the smallest that holds, the likeliest first; Optuna's in turn.

    Where half of the evaluations are enough for every set of that depth, they all get measured and Optuna is not
    asked.
    """
    best = smallest_holding(history, question)
    answer = best.layers if best else LayerSet.full(question.total)
    if answer.depth == 1:
        return []
    dropped = question.total - answer.depth + 1
    if math.comb(len(question.free), dropped) <= question.evaluations // 2:
        every = (LayerSet.dropping(gone, question.total) for gone in combinations(question.free, dropped))
        return likeliest_first(unmeasured(every, history, question), history, question)[: question.width]
    steps = likeliest_first(unmeasured(one_step_below(answer), history, question), history, question)
    turns = range(len(history), len(history) + question.width)
    asked = sum(turn % OPTUNA_EVERY == 0 for turn in turns) if steps else question.width
    drawn = ask(history, replace(question, width=asked)) if asked else []
    return unmeasured([*drawn, *steps], history, question)[: question.width]


def one_step_below(layers: LayerSet) -> Iterator[LayerSet]:
    """The sets with one layer less, and those that differ from them by one exchanged layer."""
    for smaller in layers.smaller():
        yield smaller
        yield from (smaller.add(back).drop(out) for out in smaller.kept for back in smaller.dropped)


def likeliest_first(sets: Sequence[LayerSet], history: Sequence[Trial], question: Question) -> list[LayerSet]:
    """Sets of one depth, by what the history lets expect them to lose; of equals, upper layers go first."""
    effects = layer_effects(history, question)
    return sorted(sets, key=lambda layers: (sum(effects[index] for index in layers.dropped), layers))


def layer_effects(history: Sequence[Trial], question: Question) -> list[float]:
    """Points that dropping each layer costs: a ridge regression on all layers and on the square of their number.

    Collapsed trials stay out: what they lost is no sum of layers.
    """
    usable = [trial for trial in history if trial.state == "complete"]
    gone = np.array([[index in trial.layers.dropped for index in range(question.total)] for trial in usable], float)
    gone = gone.reshape(len(usable), question.total)
    columns = np.column_stack([gone, gone.sum(axis=1) ** 2 / question.total])
    lost = np.array([question.tolerance.degradation(trial) for trial in usable])
    weights = np.linalg.solve(columns.T @ columns + RIDGE * np.eye(columns.shape[1]), columns.T @ lost)
    return [float(weight) for weight in weights[:-1]]
