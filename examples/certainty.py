"""Measures how often an answer is wrong, in simulated studies with known true degradations.

    python examples/certainty.py --studies 1000

Every study has its own model, task and noise: outcomes of single examples, of which two models differ on a few (a third
to a half of these with every seed), seeds, and screens that exaggerate. The search loop and the verdict are those of
the package. The table compares its verdicts with the rule of the literature: one seed, and the same examples for
choosing and for scoring.

In ordinary studies the true degradations are random. In the worst case the true degradation of every measured set is
slightly above delta, so every smaller answer is wrong, and several sets give several chances to err.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

import numpy as np
from joblib import Parallel, delayed
from scipy import special
from tabulate import tabulate

from budget_search.core.formatting import plural
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, Trial
from budget_search.layer_search.loop import Search
from budget_search.layer_search.settings import SearchSettings
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.verdict import Criterion, Judgement, judge, verdict_word
from budget_search.simulation.replay import InMemoryHistory, NullObserver

Judge = Callable[[np.ndarray, Mapping[LayerSet, np.ndarray], float], dict[LayerSet, Judgement]]

LAYERS = 8
BASELINE = 88.0
EXAMPLES = (277, 872, 2_000, 5_000)
SELECTION = 2_000
SEED_SD = (0.2, 1.0)
# Share of the variance between seeds that all layer sets have in common.
SHARED = (0.0, 0.5)
# An example is correct if a latent normal variable is below a threshold. The first is the share of its variance due to
# the layer set, the second the share due to a single run, relative to the first. Two models then differ on 3 to 7 % of
# the examples, and a third to a half of the variance of these differences remains when the seed changes.
SET_SHARE, RUN_SHARE = (0.01, 0.06), (0.5, 0.8)


@dataclass(frozen=True)
class Scenario:
    """The settings of all studies in one row of the table. Deltas are in points.

    In the worst case ``tried`` sets are measured, each with a true degradation slightly above the first delta; with 0
    the study is searched. ``examples`` (on certification) and ``seed_sd`` (points) are random if not given.
    """

    criterion: Criterion = "observed"
    deltas: tuple[float, ...] = (1.0, 2.0, 3.0)
    tried: int = 0
    seeds: int = 3
    examples: int | None = None
    seed_sd: float | None = None

    def __str__(self) -> str:
        kind = f"worst case, {plural(self.tried, 'set')}" if self.tried else "ordinary"
        return f"{kind}, {plural(self.seeds, 'seed')}, {self.criterion}"

    @property
    def settings(self) -> SearchSettings:
        return SearchSettings(
            total=LAYERS,
            deltas=self.deltas,
            strategy="auto",
            seeds=tuple(range(42, 42 + self.seeds)),
            screen_seed=7,
            screen_rung=1 / 6,
            evaluations=16,
            criterion=self.criterion,
            width=4,
            named=tuple(LayerSet.dropping((index,), LAYERS) for index in range(self.tried)),
        )


class Study:
    """A simulated study with known degradations. The same number gives the same study in any order of calls."""

    def __init__(self, number: int, scenario: Scenario) -> None:
        self.number, self.scenario = number, scenario
        draw = np.random.default_rng([20261120, number])
        drawn_examples, drawn_sd = int(draw.choice(EXAMPLES)), float(draw.uniform(*SEED_SD))
        self.examples = scenario.examples or drawn_examples
        self.seed_sd = scenario.seed_sd or drawn_sd
        self.shared = float(draw.uniform(*SHARED))
        self.set_share = float(draw.uniform(*SET_SHARE))
        self.run_share = self.set_share * float(draw.uniform(*RUN_SHARE))
        self.effects = draw.lognormal(-0.9, 0.8, LAYERS) * np.linspace(draw.uniform(1.0, 2.5), 0.6, LAYERS)
        self.neighbours = draw.normal(0, 0.25, LAYERS)
        self.curve = float(draw.uniform(0, 0.1))
        self.slope = float(draw.uniform(0.8, 2.0))
        self.outcomes = lru_cache(maxsize=None)(self._outcomes)

    def degradation(self, layers: LayerSet) -> float:
        """True mean degradation, in points."""
        if layers.is_full:
            return 0.0
        if self.scenario.tried:
            return self.scenario.deltas[0] + 1e-9
        dropped = layers.dropped
        pairs = sum(self.neighbours[index] for index in dropped if index + 1 in dropped)
        return float(sum(self.effects[index] for index in dropped) + pairs + self.curve * len(dropped) ** 2)

    def run_jobs(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        return map(self.measure, filter(None, jobs))

    def measure(self, job: Job) -> Trial:
        layers, key = job.key.layers, job.key
        if key.rung == FULL_RUNG:
            row = self.scenario.settings.seeds.index(key.seed)
            score = float(self.outcomes(layers, "certification")[row].mean())
        else:
            noise = 0.0 if layers.is_full else float(self._draw("screen", layers).normal(0, self.seed_sd + 0.3))
            score = max(50.0, BASELINE - 3 - self.slope * self.degradation(layers) - noise)
        return Trial(key, job.split, "complete", score, train_tokens=round(1000 * key.rung))

    def judge(self, layers: LayerSet, among: Iterable[LayerSet], confidence: float, rule: Judge) -> Judgement:
        """Compare with the baseline as the package does, pooling the variance between seeds over the sets ``among``."""
        results = {each: self.outcomes(each, "certification") for each in (layers, *among)}
        return rule(self.outcomes(LayerSet.full(LAYERS), "certification"), results, confidence)[layers]

    def _outcomes(self, layers: LayerSet, split: str) -> np.ndarray:
        """Contributions (seeds, examples), 100 points for a correct example; their expectation is the true score."""
        size, seeds = self.examples if split == "certification" else SELECTION, self.scenario.seeds
        easiness = self._draw("ease", split).normal(0, math.sqrt(1 - self.set_share - self.run_share), size)
        own = self._draw("own", split, layers)
        common = self._draw("seeds", split).normal(0, math.sqrt(self.shared), seeds)
        seed_effects = self.seed_sd * (common + own.normal(0, math.sqrt(1 - self.shared), seeds))
        latent = easiness + own.normal(0, math.sqrt(self.set_share), size)
        latent = latent + own.normal(0, math.sqrt(self.run_share), (seeds, size))
        chance = np.clip((BASELINE - self.degradation(layers) + seed_effects) / 100, 0.001, 0.999)
        return np.where(latent < special.ndtri(chance)[:, None], 100.0, 0.0)

    def _draw(self, *names: str | LayerSet) -> np.random.Generator:
        words = [sum(2**index for index in w.kept) if isinstance(w, LayerSet) else sum(w.encode()) for w in names]
        return np.random.default_rng([self.number, *words])


@dataclass(frozen=True)
class Answer:
    """The answer of a rule to one delta of one study. ``excess`` is the true degradation minus delta, in points."""

    rule: str
    study: int
    smaller: bool
    excess: float


def play(number: int, scenario: Scenario) -> list[Answer]:
    """Search the study of this number; the answers of every rule to every delta."""
    return search_in(Study(number, scenario))


def search_in(study: Study, rule: Judge = judge) -> list[Answer]:
    """The answers to every delta if confirmations are compared by this rule."""
    memory = InMemoryHistory()

    def judged(layers: LayerSet, confidence: float) -> Judgement:
        return study.judge(layers, state.confirmations.uncollapsed, confidence, rule)

    state = SearchState(study.scenario.settings, memory, judged)
    search = Search(state, study.run_jobs, NullObserver())
    answers = search.run()
    tried = {trial.layers for trial in memory.history if not trial.layers.is_full}
    chosen = [(verdict_for(state, layers, delta), delta, layers) for delta, layers in answers.items()]
    chosen += [("one seed", delta, one_seed(study, tried, delta)) for delta in answers]
    return [
        Answer(name, study.number, not layers.is_full, study.degradation(layers) - delta)
        for name, delta, layers in chosen
    ]


def verdict_for(state: SearchState, layers: LayerSet, delta: float) -> str:
    judgement = None if layers.is_full else state.judge(layers, delta)
    return verdict_word(layers, delta, judgement, criterion=state.settings.criterion)


def one_seed(study: Study, tried: Iterable[LayerSet], delta: float) -> LayerSet:
    """The rule of the literature: the smallest set within delta in a single run, on the examples used for choosing."""
    full = LayerSet.full(LAYERS)
    scores = {layers: study.outcomes(layers, "selection")[0].mean() for layers in (full, *tried)}
    holding = [layers for layers in tried if scores[full] - scores[layers] <= delta]
    return min(holding, key=lambda layers: (layers.depth, -scores[layers]), default=full)


def rows(scenario: Scenario, answers: Sequence[Answer], studies: int) -> Iterator[tuple[object, ...]]:
    """Per rule: the share of smaller answers, the share of wrong ones among them, and of studies with a wrong one."""
    for rule in ("certified", "observed", "one seed"):
        given = [answer for answer in answers if answer.rule == rule and answer.smaller]
        wrong = [answer for answer in given if answer.excess > 0]
        if given:
            yield (
                scenario,
                rule,
                f"{len(given) / studies / len(scenario.deltas):.0%}",
                f"{len(wrong) / len(given):.1%}",
                f"{len({answer.study for answer in wrong}) / studies:.1%}",
                f"{fmean(answer.excess for answer in wrong):.2f}" if wrong else "-",
            )


SCENARIOS = (
    Scenario("observed"),
    Scenario("certified"),
    Scenario("certified", (1.0,), tried=1),
    Scenario("certified", (1.0,), tried=5),
)
HEADERS = ("studies", "rule", "smaller answers", "wrong answers", "studies with a wrong answer", "mean excess")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    table: list[tuple[object, ...]] = []
    for scenario in SCENARIOS:
        played = Parallel(arguments.workers)(delayed(play)(number, scenario) for number in range(arguments.studies))
        table += rows(scenario, [answer for answers in played for answer in answers], arguments.studies)
    print(tabulate(table, headers=HEADERS))


if __name__ == "__main__":
    main()
