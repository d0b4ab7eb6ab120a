"""Measures whether a search benefits from starting with the layer sets of another study (`--start-from`).

    python examples/start_from.py --models 20

Searches generated models from scratch and with the best layer sets of an earlier search on another model, which shares
a given fraction of its degradations (0: nothing in common). Prints training equivalents, excess layers, the share of
answers that are no deeper than the true smallest set, and the share of answers that came from the earlier search.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import fmean

from joblib import Parallel, delayed
from tabulate import tabulate

from budget_search.app.warm_start import MOST_SETS
from budget_search.core.layers import LayerSet
from budget_search.layer_search.loop import Search
from budget_search.layer_search.settings import SearchSettings
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.verdict import Judgement
from budget_search.simulation.generated_models import GeneratedModel
from budget_search.simulation.replay import InMemoryHistory, NullObserver

TOTAL, DELTAS, SEEDS = 12, (1.0, 2.0, 3.0), (42, 43, 44)
OTHERS = 100_000


class Relative(GeneratedModel):
    """A model that shares a fraction of its degradations with the model of another number."""

    def __init__(self, number: int, other: int, share: float) -> None:
        super().__init__(number, TOTAL)
        self._truth = share * GeneratedModel(other, TOTAL)._truth + (1 - share) * self._truth


def searched(model: GeneratedModel, start: Sequence[LayerSet] = ()) -> tuple[SearchState, InMemoryHistory]:
    memory = InMemoryHistory()
    settings = SearchSettings(TOTAL, DELTAS, "auto", SEEDS, 7, 1 / 6, 21, start=tuple(start))

    def judge(layers: LayerSet, confidence: float) -> Judgement:
        values = state.confirmations.degradations(layers)
        variance = 2 * model.noise.seed_sd**2 / len(values)
        return Judgement(fmean(values), variance, 0.0, 10, len(values), 5_000, confidence)

    state = SearchState(settings, memory, judge)
    Search(state, model.run_jobs, NullObserver()).run()
    return state, memory


def best_sets(state: SearchState) -> list[LayerSet]:
    """The answers, then the best screens near their depths, as ``warm_start.good_sets`` selects them from a report."""
    answers = [layers for layers in state.answers().values() if not layers.is_full]
    depths = [layers.depth for layers in answers] or [TOTAL]
    screens = state.screens
    degradations = {trial.layers: screens.tolerance(0.0).degradation(trial) for trial in screens.trials}
    ranked = sorted(degradations, key=degradations.__getitem__, reverse=True)
    best = {layers.depth: layers for layers in ranked if not layers.is_full}
    frontier = sorted(best.values(), key=lambda layers: min(abs(layers.depth - depth) for depth in depths))
    return list(dict.fromkeys([*answers, *frontier]))[:MOST_SETS]


def outcome(number: int, share: float | None) -> tuple[float, float, float, float]:
    """Equivalents, excess layers, share of answers with the true smallest depth, share of answers from the start."""
    model = GeneratedModel(number, TOTAL)
    start: list[LayerSet] = []
    if share is not None:
        start = best_sets(searched(Relative(OTHERS + number, number, share))[0])
    state, memory = searched(model, start)
    answers = state.answers()
    excess = [layers.depth - model.smallest_depth(delta) for delta, layers in answers.items()]
    spent = sum(trial.rung * trial.layers.depth / TOTAL for trial in memory.history)
    return spent, fmean(excess), fmean(e <= 0 for e in excess), fmean(layers in start for layers in answers.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.8, 0.5, 0.0])
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    rows = []
    with Parallel(n_jobs=arguments.workers) as parallel:
        for share in (None, *arguments.shares):
            numbers = range(arguments.first, arguments.first + arguments.models)
            found = parallel(delayed(outcome)(number, share) for number in numbers)
            spent, excess, equal, taken = (fmean(column) for column in zip(*found, strict=True))
            start = "from scratch" if share is None else f"from a model with {share:.0%} in common"
            rows.append((start, f"{spent:.1f}", f"{excess:.2f}", f"{equal:.0%}", f"{taken:.0%}"))
    print(tabulate(rows, headers=("start", "equivalents", "excess layers", "smallest depth", "from the start")))


if __name__ == "__main__":
    main()
