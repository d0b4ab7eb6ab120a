"""How good and how dear are a strategy's answers, in made-up 12-layer worlds whose best answers are known?

    python -m tests.simulate --worlds 60 --strategy auto optuna greedy

Prints, per strategy: full fine-tune equivalents spent (mean, 10 and 90 % quantiles), layers too many (mean; share of
answers with none, with one at the most), and the share of answers that truly lose more than delta.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from statistics import fmean, quantiles

import numpy as np
from tabulate import tabulate

from budget_search.layers import LayerSet
from budget_search.trial import Job, Trial
from tests.worlds import BASELINE, Memory, World, normal, plan, search

DELTAS = (1.0, 2.0, 3.0)
SEED_SD = 0.5
SCREEN_NOISE = 0.5
# Relative to that of the score in points: a mean loss is the steadier signal.
LOSS_NOISE = 0.25
POINTS_PER_UNIT_OF_LOSS = 35.0


@dataclass
class NeighbourlyWorld(World):
    """Lower layers are dearer, neighbours interact, many drops cost more than their sum; screens exaggerate."""

    number: int = 0

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.number)
        dearness = np.linspace(random.uniform(0.5, 2.0), 0.1, 12) * random.lognormal(0, 0.6, 12) * 0.6
        self.effects = tuple(np.clip(dearness, -0.1, None))
        self.pairs = random.normal(0, 0.15, 12)
        self.curve = 0.04 * random.uniform(0, 1)
        self.slope = random.uniform(0.8, 2.0)
        self.seed_sd = SEED_SD

    def lost(self, layers: LayerSet) -> float:
        gone = layers.dropped
        pairs = sum(self.pairs[index] for index in gone if index + 1 in gone)
        return sum(self.effects[index] for index in gone) + pairs + self.curve * len(gone) ** 2

    def worth(self, layers: LayerSet) -> float:
        return BASELINE - self.lost(layers)

    def measure(self, job: Job) -> Trial:
        if job.split == "certification":
            return super().measure(job)
        key = job.key
        lost = self.slope * self.lost(key.layers)
        blur = 0.0 if key.layers.is_full else 1.0
        score = 85.0 - lost + blur * SCREEN_NOISE * normal(self.number, key.layers, key.rung)
        further = lost + blur * LOSS_NOISE * normal("loss", self.number, key.layers, key.rung)
        loss = 0.4 + further / POINTS_PER_UNIT_OF_LOSS
        return Trial(key, job.split, "complete", score, {"loss": loss}, train_tokens=round(1000 * key.rung))

    def fewest(self, delta: float) -> int:
        for depth in range(1, 12):
            sets = (LayerSet(kept, 12) for kept in itertools.combinations(range(12), depth))
            if any(self.lost(layers) <= delta for layers in sets):
                return depth
        return 12


def play(strategy: str, worlds: int, evaluations: int) -> list[object]:
    spent, excess, broken = [], [], []
    for number in range(worlds):
        world, memory = NeighbourlyWorld(number=number), Memory()
        answers = search(world, memory, plan(strategy=strategy, evaluations=evaluations, deltas=DELTAS)).run()
        spent.append(sum(trial.rung * trial.layers.depth / 12 for trial in memory.trials))
        excess += [layers.depth - world.fewest(delta) for delta, layers in answers.items()]
        broken += [world.lost(layers) > delta for delta, layers in answers.items()]
    deciles = quantiles(spent, n=10)
    return [
        strategy,
        f"{fmean(spent):.1f} [{deciles[0]:.1f}, {deciles[-1]:.1f}]",
        f"{fmean(excess):.2f}",
        f"{fmean(e <= 0 for e in excess):.0%}",
        f"{fmean(e <= 1 for e in excess):.0%}",
        f"{fmean(broken):.0%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--evaluations", type=int, default=21)
    parser.add_argument("--strategy", nargs="+", default=["auto"])
    arguments = parser.parse_args()
    rows = [play(strategy, arguments.worlds, arguments.evaluations) for strategy in arguments.strategy]
    print(tabulate(rows, headers=("strategy", "equivalents", "layers too many", "none", "at most one", "breaks delta")))


if __name__ == "__main__":
    main()
