"""Measures the cost of strategies and the quality of their answers on generated models with known best answers.

    python examples/simulate.py --models 100 --strategy auto optuna top
    python examples/simulate.py --models 120 --first 6000 --steps 100 250 1000 3600

Every search answers deltas of 1, 2 and 3 points with three seeds. Screens are those of a recipe of so many optimizer
steps (--steps), or have the given length and number. Prints per recipe and strategy: full fine-tune equivalents of
training (mean, 10 % and 90 % quantiles, share of searches with at most 12), their ratio to the equivalents of the
baseline and the answers, which no search can avoid, the duration in full fine-tunes with the given number of parallel
evaluations, the shares of answers with exactly, at most, and at most one more than the true smallest depth, the mean
number of excess layers, and the share of answers whose true degradation exceeds delta.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed
from tabulate import tabulate

from budget_search.core.config import CRITERIA, Criterion
from budget_search.core.layers import LayerSet
from budget_search.layer_search.loop import Search
from budget_search.layer_search.settings import SearchSettings, screen_rung, screens_for
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.verdict import Judgement
from budget_search.simulation.generated_models import GeneratedModel, Noise
from budget_search.simulation.replay import InMemoryHistory, NullObserver
from budget_search.simulation.simulated_search import VirtualWorkers, layers_trained

DELTAS = (1.0, 2.0, 3.0)
SEEDS = (42, 43, 44)


@dataclass(frozen=True)
class Screening:
    """How many screens of which length a search runs, and the steps of the recipe that they belong to, if given."""

    rung: float
    screens: int
    steps: int | None = None

    @classmethod
    def of(cls, steps: int, layers: int = 12) -> Screening:
        """As a search chooses for a recipe of so many optimizer steps."""
        rung = screen_rung(steps)
        return cls(rung, screens_for(rung, layers), steps)


@dataclass(frozen=True)
class Outcome:
    """One search: equivalents, duration in full fine-tunes, excess layers and true degradation per delta.

    ``unavoidable`` are the equivalents of the baseline and of each distinct answer.
    """

    equivalents: float
    unavoidable: float
    time: float
    excess: tuple[int, ...]
    degradations: tuple[float, ...]
    screens: int
    confirmations: int


def play(
    strategy: str,
    number: int,
    screening: Screening,
    noise: Noise,
    width: int,
    criterion: Criterion = "likely",
    layers: int = 12,
) -> Outcome:
    model, memory = GeneratedModel(number, layers, noise), InMemoryHistory()
    rung, screens = screening.rung, screening.screens
    settings = SearchSettings(layers, DELTAS, strategy, SEEDS, 7, rung, screens, criterion=criterion, width=width)
    workers = VirtualWorkers(width, layers_trained, model.measure)

    def judge(candidate: LayerSet, confidence: float) -> Judgement:
        values = state.confirmations.degradations(candidate)
        return Judgement(float(np.mean(values)), noise.seed_sd**2, 0.0, 2, len(values), 5000, confidence)

    state = SearchState(settings, memory, judge)
    search = Search(state, workers.run, NullObserver())
    answers = search.run()
    return Outcome(
        equivalents=sum(trial.rung * trial.layers.depth / layers for trial in memory.history),
        unavoidable=len(SEEDS) * sum(each.depth for each in {LayerSet.full(layers), *answers.values()}) / layers,
        time=workers.clock / layers,
        excess=tuple(answers[delta].depth - model.smallest_depth(delta) for delta in DELTAS),
        degradations=tuple(model.degradation(answers[delta]) for delta in DELTAS),
        screens=sum(trial.split == "selection" for trial in memory.history),
        confirmations=sum(trial.split == "certification" for trial in memory.history),
    )


def summary(strategy: str, screening: Screening, outcomes: list[Outcome]) -> dict[str, object]:
    spent = np.array([outcome.equivalents for outcome in outcomes])
    unavoidable = np.array([outcome.unavoidable for outcome in outcomes])
    excess = np.array([outcome.excess for outcome in outcomes])
    degradations = np.array([outcome.degradations for outcome in outcomes])
    return {
        **({"steps": screening.steps} if screening.steps else {}),
        "rung": round(screening.rung, 3),
        "screens": screening.screens,
        "strategy": strategy,
        "equivalents": round(float(spent.mean()), 2),
        "10 %": round(float(np.quantile(spent, 0.1)), 1),
        "90 %": round(float(np.quantile(spent, 0.9)), 1),
        "12 at most": round(float((spent <= 12).mean()), 3),
        "over unavoidable": round(float((spent / unavoidable).mean()), 2),
        "time": round(float(np.mean([outcome.time for outcome in outcomes])), 2),
        "equal": round(float((excess == 0).mean()), 3),
        "equal or less": round(float((excess <= 0).mean()), 3),
        "one more at most": round(float((excess <= 1).mean()), 3),
        "layers too many": round(float(excess.mean()), 2),
        "breaks delta": round(float((degradations > np.array(DELTAS)).mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100, help="number of generated models (default 100)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default 0)")
    parser.add_argument("--strategy", nargs="+", default=["auto"])
    parser.add_argument("--criterion", choices=CRITERIA, default="likely")
    parser.add_argument("--steps", type=int, nargs="+", help="steps of recipes, in place of --screens and --rung")
    parser.add_argument("--screens", type=int, default=60, help="screened layer sets (default 60)")
    parser.add_argument("--rung", type=float, default=1 / 24, help="length of a screen (default 1/24 of a fine-tune)")
    parser.add_argument("--seed-sd", type=float, default=0.6, help="sd of a score between seeds, in points")
    parser.add_argument("--bias", type=float, default=Noise.bias, help="bias of screens (default 0.6)")
    parser.add_argument(
        "--collapse", type=float, default=Noise.collapse, help="points lost from which screens collapse (default: none)"
    )
    parser.add_argument("--at-a-time", type=int, default=1, help="parallel evaluations in each search (default 1)")
    parser.add_argument("--workers", type=int, default=2, help="parallel searches")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    noise = Noise(seed_sd=arguments.seed_sd, bias=arguments.bias, collapse=arguments.collapse)
    width, criterion = arguments.at_a_time, arguments.criterion
    numbers = range(arguments.first, arguments.first + arguments.models)
    screenings = [Screening.of(steps) for steps in arguments.steps or ()]
    rows = []
    with Parallel(n_jobs=arguments.workers) as parallel:
        for screening in screenings or [Screening(arguments.rung, arguments.screens)]:
            for strategy in arguments.strategy:
                tasks = (delayed(play)(strategy, number, screening, noise, width, criterion) for number in numbers)
                rows.append(summary(strategy, screening, parallel(tasks)))
    if arguments.format == "json":
        print("\n".join(map(json.dumps, rows)))
    else:
        print(tabulate(rows, headers="keys"))


if __name__ == "__main__":
    main()
