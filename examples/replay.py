"""Runs strategies on recorded tables of scores: the quality of their answers, and the number of evaluations.

    python examples/replay.py --table minilm-l6-sst2.json                          # the fewest layers, the whole search
    python examples/replay.py --table glp-*.json --depth 10 --evaluations 23       # the best set of ten layers

With --delta the whole search is run: baseline, screens and confirmations with all recorded seeds. With --depth a
strategy looks for the best set of that many layers in single runs; its regret is the score of the best set in the table
minus the score of its choice. Every repeat has random tie-breaks, a random seed whose runs are used and, if the table
contains predictions, a bootstrap sample of the examples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from tabulate import tabulate

from budget_search.core.errors import BudgetSearchError, StudyError, UsageError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, SearchBudget, Trial, TrialKey
from budget_search.layer_search.loop import Search
from budget_search.layer_search.settings import SearchSettings, screens_for
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.strategies import STRATEGIES
from budget_search.layer_search.verdict import Judgement
from budget_search.simulation.replay import UNRECORDED, InMemoryHistory, NullObserver, Table, play_at_depth

SCREEN_SEED = 10**6


@dataclass(frozen=True)
class Outcome:
    """One repeat: number of evaluations, full fine-tune equivalents of training, and the quality of the answer.

    ``regrets`` has one number, the points below the best set of that depth. ``excess`` has one number per delta: the
    layers beyond the smallest set that holds by the table's mean scores.
    """

    evaluations: int
    equivalents: float
    regrets: tuple[float, ...] = ()
    excess: tuple[int, ...] = field(default=())


def at_depth(strategy: str, table: Table, depth: int, evaluations: int, repeat: int) -> Outcome:
    """The best set of ``depth`` layers, from runs of one seed."""
    draw = np.random.default_rng([repeat, depth])
    seed = int(draw.choice(table.seeds()))
    played = play_at_depth(
        strategy, table.resampled(draw), depth, evaluations=evaluations, record_seed=seed, seed=repeat
    )
    scores = {layers: table.mean_score(layers) for layers in table.layer_sets() if layers.depth == depth}
    equivalents = sum(trial.layers.depth / table.total for trial in played.trials)
    return Outcome(len(played.trials), equivalents, (max(scores.values()) - scores[played.choice],))


def within_deltas(
    strategy: str, table: Table, deltas: Sequence[float], evaluations: int | None, repeat: int
) -> Outcome:
    """The fewest layers within each delta (points), by the whole search."""
    draw = np.random.default_rng(repeat)
    seen, screened_seed, memory = table.resampled(draw), int(draw.choice(table.seeds())), InMemoryHistory()
    rung = min(key.rung for key in (*table.prefixes, *table.trials))
    settings = SearchSettings(
        total=table.total,
        deltas=tuple(deltas),
        strategy=strategy,
        seeds=tuple(table.seeds()),
        screen_seed=SCREEN_SEED + repeat,
        screen_rung=rung,
        evaluations=screens_for(rung, table.total),
        # The truth in a table is the mean of its runs.
        criterion="observed",
        budget=SearchBudget(max_trials=evaluations),
    )

    def run_jobs(jobs: Iterable[Job | None]) -> Iterator[Trial]:
        return (answer(seen, job, screened_seed) for job in jobs if job)

    def judge(layers: LayerSet, confidence: float) -> Judgement:
        values = state.confirmations.degradations(layers)
        return Judgement(fmean(values), None, 0.0, 0, len(values), 0, confidence)

    state = SearchState(settings, memory, judge)
    search = Search(state, run_jobs, NullObserver())
    answers = search.run()
    read = [trial for trial in memory.history if trial.error != UNRECORDED]
    full = seen.trials[TrialKey(LayerSet.full(table.total), FULL_RUNG, settings.seeds[0])].train_tokens * table.total
    return Outcome(
        len(read),
        sum(trial.train_tokens * trial.layers.depth for trial in read) / full,
        excess=tuple(answers[delta].depth - fewest(table, delta) for delta in settings.deltas),
    )


def answer(table: Table, job: Job, screened_seed: int) -> Trial:
    """The record of a job. For a screen, the shortest recorded run of this seed that is long enough."""
    key = job.key
    if job.split == "selection":
        key = replace(key, seed=screened_seed)
        recorded = {**table.prefixes, **table.trials}
        rungs = [each.rung for each in recorded if (each.layers, each.seed) == (key.layers, key.seed)]
        key = replace(key, rung=min((rung for rung in rungs if rung >= key.rung), default=FULL_RUNG))
        trial = recorded.get(key)
    else:
        trial = table.trials.get(key)
    if trial is None:
        return Trial(job.key, job.split, "failed", error=UNRECORDED)
    return replace(trial, key=job.key, split=job.split)


def fewest(table: Table, delta: float) -> int:
    """Layers of the smallest set whose mean score, over all seeds, is within delta (points) of the full model's."""
    baseline = table.mean_score(LayerSet.full(table.total))
    return min(layers.depth for layers in table.layer_sets() if baseline - table.mean_score(layers) <= delta)


def summarise(task: str, strategy: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One strategy on one table, over the repeats."""
    row: dict[str, Any] = {"task": task, "strategy": strategy, "evaluations": _mean(o.evaluations for o in outcomes)}
    regrets = [regret for outcome in outcomes for regret in outcome.regrets]
    excess = [layers for outcome in outcomes for layers in outcome.excess]
    row |= {"regret_mean": _mean(regrets), "regret_std": stdev(regrets) if len(regrets) > 1 else None}
    row |= {"equivalents": _mean(outcome.equivalents for outcome in outcomes)}
    if excess:
        row |= {"excess_depth_mean": _mean(excess), "answers_equal": _mean(layers == 0 for layers in excess)}
        row |= {"answers_at_most_one_deeper": _mean(layers <= 1 for layers in excess)}
        row |= {"answers_too_shallow": _mean(layers < 0 for layers in excess)}
    return row


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def repeated(table: Table, strategy: str, arguments: argparse.Namespace) -> list[Outcome]:
    """All repeats; empty if the strategy cannot be run on this table."""
    try:
        if arguments.depth is not None:
            count = arguments.evaluations or len(table.layer_sets())
            return [at_depth(strategy, table, arguments.depth, count, number) for number in range(arguments.repeats)]
        deltas = [round(100 * delta, 10) for delta in arguments.delta]
        return [
            within_deltas(strategy, table, deltas, arguments.evaluations, number) for number in range(arguments.repeats)
        ]
    except (StudyError, UsageError):
        return []


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, nargs="+", required=True, metavar="FILE")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--delta", type=float, nargs="+", default=[0.01, 0.02, 0.03], help="fractions: 0.01 is one point"
    )
    asked.add_argument("--depth", type=int, help="layers kept")
    parser.add_argument("--evaluations", type=int, metavar="N", help="maximum number of evaluations")
    parser.add_argument("--strategy", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    try:
        tables = [Table.load(path) for path in arguments.table]
    except BudgetSearchError as error:
        raise SystemExit(str(error)) from error
    rows = [
        summarise(table.name, strategy, repeated(table, strategy, arguments))
        for table in tables
        for strategy in arguments.strategy
    ]
    if len(tables) > 1:
        rows += [over_tables(strategy, rows) for strategy in arguments.strategy]
    if arguments.format == "json":
        for row in rows:
            print(json.dumps(row))
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        print(
            tabulate([[row.get(name) for name in names] for row in rows], headers=names, floatfmt=".3g", missingval="-")
        )


def over_tables(strategy: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of a strategy over the tables, and the standard deviation of the tables' means."""
    own = [row for row in rows if row["strategy"] == strategy]
    known = {name: [row[name] for row in own if row.get(name) is not None] for name in own[0]}
    means = {name: _mean(values) for name, values in known.items() if name not in ("task", "strategy")}
    spread = stdev(known["regret_mean"]) if len(known["regret_mean"]) > 1 else None
    return {"task": f"all {len(own)}", "strategy": strategy, **means, "regret_std": spread}


if __name__ == "__main__":
    main()
