"""Measures time and memory of the search itself: 10,000 evaluations of a 96-layer model, with scores from a table.

    python examples/coordinator_at_scale.py

Runs a search that measures given layer sets with three seeds each, and greedy elimination from 96 layers down to one.
The records of the table are generated from layer effects. Prints seconds and resident memory.
"""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np
from tabulate import tabulate

from budget_search.core.layers import LayerSet
from budget_search.core.trial import Trial, TrialKey
from budget_search.layer_search.loop import Search
from budget_search.layer_search.settings import SearchSettings
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.verdict import Judgement
from budget_search.simulation.replay import InMemoryHistory, NullObserver, Table, play

TOTAL, SEEDS = 96, (42, 43, 44)
NAMED = 3_333
DELTA = 10.0
EFFECTS = np.random.default_rng(0).exponential(0.05, TOTAL)


class GeneratedRecords(dict[TrialKey, Trial]):
    """Records that are generated on access."""

    def __missing__(self, key: TrialKey) -> Trial:
        noise = np.random.default_rng([key.seed, *key.layers.kept]).normal(0, 0.1)
        degradation = float(EFFECTS[list(key.layers.dropped)].sum())
        return Trial(key, "selection", "complete", 90.0 - degradation + noise, train_tokens=1000, train_seconds=1.0)

    def __contains__(self, key: object) -> bool:
        return True

    def get(self, key: TrialKey, default: Any = None) -> Any:
        return self[key]


class MemoryLog(NullObserver):
    """Records seconds and memory at every thousandth evaluation."""

    def __init__(self) -> None:
        self._began, self._count = time.monotonic(), 0
        self.lines: list[tuple[int, float, float]] = []

    def finished(self, trial: Trial) -> None:
        self._count += 1
        if self._count % 1000 == 0:
            self.lines.append((self._count, time.monotonic() - self._began, resident()))


def resident() -> float:
    """Peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    table = Table("generated", TOTAL, "accuracy", frozenset(), GeneratedRecords())
    draw = np.random.default_rng(1)
    sets: set[LayerSet] = set()
    while len(sets) < NAMED:
        sets.add(LayerSet.dropping(draw.choice(TOTAL, draw.integers(1, 60), replace=False).tolist(), TOTAL))
    settings = SearchSettings(TOTAL, (DELTA,), "auto", SEEDS, 7, 0.5, 40, named=tuple(sorted(sets)))
    history, log = InMemoryHistory(), MemoryLog()

    def judge(layers: LayerSet, confidence: float) -> Judgement:
        values = state.confirmations.degradations(layers)
        return Judgement(sum(values) / len(values), 0.01, 0.01, 100, len(values), 1000, confidence)

    state = SearchState(settings, history, judge)
    search = Search(state, table.run_jobs, log)
    began = time.monotonic()
    answer = search.run()[DELTA]
    seconds = time.monotonic() - began
    print(tabulate(log.lines, headers=("evaluations", "seconds", "MiB resident"), floatfmt=".1f"))
    print(
        f"\nnamed sets: {len(history.history):,} evaluations in {seconds:.1f} s; {answer.depth} of {TOTAL} layers hold"
    )
    began = time.monotonic()
    played = play("greedy", Table("generated", TOTAL, "accuracy", frozenset(), GeneratedRecords()), 100.0)
    print(
        f"greedy: {len(played.trials):,} evaluations in {time.monotonic() - began:.1f} s, {resident():.0f} MiB resident"
    )


if __name__ == "__main__":
    main()
