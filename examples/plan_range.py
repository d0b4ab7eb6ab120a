"""Checks the range of costs that `plan` gives for 9 of 10 searches, on further generated models.

    python examples/plan_range.py --layers 6 --models 60

Prints the ranges of evaluations and training equivalents from simulated searches, and the shares of further simulated
searches inside, below and above them.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor

from tabulate import tabulate

from budget_search.layer_search.settings import SearchSettings, screen_rung, screens_for
from budget_search.simulation.simulated_search import SIMULATIONS, SimulatedSearch, simulate_searches


def evaluations(search: SimulatedSearch) -> float:
    return len(search.jobs)


def equivalents(search: SimulatedSearch) -> float:
    return sum(job.key.rung * job.key.layers.depth / search.total for job in search.jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1_500, help="optimizer steps of a full fine-tune (default 1500)")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    own = parser.parse_args()
    rung = screen_rung(own.steps)
    settings = SearchSettings(
        own.layers, (1.0, 2.0, 3.0), own.strategy, (42, 43, 44), 7, rung, screens_for(rung, own.layers)
    )
    with ProcessPoolExecutor(own.workers) as processes:
        planned = simulate_searches(settings, run=processes.map)
        fresh = simulate_searches(settings, first=SIMULATIONS, count=own.models, run=processes.map)
    rows = []
    for name, amount in (("evaluations", evaluations), ("equivalents", equivalents)):
        low, high = min(map(amount, planned)), max(map(amount, planned))
        values = [amount(each) for each in fresh]
        below, above = (sum(value < low for value in values), sum(value > high for value in values))
        inside = len(values) - below - above
        shares = (f"{count / len(values):.0%}" for count in (inside, below, above))
        rows.append((name, f"{low:.1f} to {high:.1f}", *shares))
    print(tabulate(rows, headers=("", "planned", "inside", "below", "above")))


if __name__ == "__main__":
    main()
