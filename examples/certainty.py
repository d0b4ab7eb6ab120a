"""How often is an answer wrong? Whole searches in made-up worlds in which the true loss of every layer set is known.

    python examples/certainty.py --studies 1000

Every study has a model, a task and noise of its own: examples on which two models differ, of which a third to a half
stay when the seed changes; seeds; screens that exaggerate. It is searched by the tool's own loop and judged by its own
verdict, from the outcome of every single example. Beside the tool's words stands the rule of the literature: one seed,
and the set was chosen on the examples it is scored on.

In ordinary studies what a set truly loses is anything. In the worst case every set that is tried truly loses a trace
more than allowed: every answer is wrong, and with several sets there are several chances to be wrong.
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
# Of the variance between seeds, what all layer sets have in common.
SHARED = (0.0, 0.5)
# Whether an example is answered rightly is decided by a hidden normal variable. Of its variance, what belongs to a
# layer set for good, and, relative to that, what to a single run. That makes 3 to 7 % of two models' answers differ,
# and of the variance of these differences a third to a half stay when the seed changes.
LASTING, FLEETING = (0.01, 0.06), (0.5, 0.8)


@dataclass(frozen=True)
class SearchProblem:
    """What is asked of every study. Deltas in points.

    ``tried`` sets lose a trace more than the first delta (the worst case); 0 leaves them as they are and lets the tool
    search. ``examples`` on certification and ``seed_sd`` (points) are drawn for each study unless given.
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


class World:
    """One study's truth, and fine-tunes in it. The same number makes the same world, whatever was asked before."""

    def __init__(self, number: int, question: SearchProblem) -> None:
        self.number, self.question = number, question
        draw = np.random.default_rng([20261120, number])
        drawn_examples, drawn_sd = int(draw.choice(EXAMPLES)), float(draw.uniform(*SEED_SD))
        self.examples = question.examples or drawn_examples
        self.seed_sd = question.seed_sd or drawn_sd
        self.shared = float(draw.uniform(*SHARED))
        self.lasting = float(draw.uniform(*LASTING))
        self.fleeting = self.lasting * float(draw.uniform(*FLEETING))
        self.effects = draw.lognormal(-0.9, 0.8, LAYERS) * np.linspace(draw.uniform(1.0, 2.5), 0.6, LAYERS)
        self.neighbours = draw.normal(0, 0.25, LAYERS)
        self.curve = float(draw.uniform(0, 0.1))
        self.slope = float(draw.uniform(0.8, 2.0))
        self.outcomes = lru_cache(maxsize=None)(self._outcomes)

    def lost(self, layers: LayerSet) -> float:
        """True mean degradation, in points."""
        if layers.is_full:
            return 0.0
        if self.question.tried:
            return self.question.deltas[0] + 1e-9
        gone = layers.dropped
        pairs = sum(self.neighbours[index] for index in gone if index + 1 in gone)
        return float(sum(self.effects[index] for index in gone) + pairs + self.curve * len(gone) ** 2)

    def run_jobs(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        return map(self.measure, filter(None, jobs))

    def measure(self, job: Job) -> Trial:
        layers, key = job.key.layers, job.key
        if key.rung == FULL_RUNG:
            row = self.question.settings.seeds.index(key.seed)
            score = float(self.outcomes(layers, "certification")[row].mean())
        else:
            noise = 0.0 if layers.is_full else float(self._draw("screen", layers).normal(0, self.seed_sd + 0.3))
            score = max(50.0, BASELINE - 3 - self.slope * self.lost(layers) - noise)
        return Trial(key, job.split, "complete", score, train_tokens=round(1000 * key.rung))

    def judge(self, layers: LayerSet, among: Iterable[LayerSet], confidence: float, rule: Judge) -> Judgement:
        """As the tool does: every confirmed set shows how far seeds lie apart."""
        results = {each: self.outcomes(each, "certification") for each in (layers, *among)}
        return rule(self.outcomes(LayerSet.full(LAYERS), "certification"), results, confidence)[layers]

    def _outcomes(self, layers: LayerSet, split: str) -> np.ndarray:
        """Points by seed and example, 100 for a right answer; their expectation is what the set truly scores."""
        size, seeds = self.examples if split == "certification" else SELECTION, self.question.seeds
        ease = self._draw("ease", split).normal(0, math.sqrt(1 - self.lasting - self.fleeting), size)
        own = self._draw("own", split, layers)
        common = self._draw("seeds", split).normal(0, math.sqrt(self.shared), seeds)
        sway = self.seed_sd * (common + own.normal(0, math.sqrt(1 - self.shared), seeds))
        hidden = ease + own.normal(0, math.sqrt(self.lasting), size)
        hidden = hidden + own.normal(0, math.sqrt(self.fleeting), (seeds, size))
        chance = np.clip((BASELINE - self.lost(layers) + sway) / 100, 0.001, 0.999)
        return np.where(hidden < special.ndtri(chance)[:, None], 100.0, 0.0)

    def _draw(self, *what: str | LayerSet) -> np.random.Generator:
        words = [sum(2**index for index in w.kept) if isinstance(w, LayerSet) else sum(w.encode()) for w in what]
        return np.random.default_rng([self.number, *words])


@dataclass(frozen=True)
class Answer:
    """What a rule says for one delta of one study. ``excess`` is what the set truly loses beyond delta, in points."""

    rule: str
    study: int
    smaller: bool
    excess: float


def play(number: int, question: SearchProblem) -> list[Answer]:
    """Search the world of this number; what every rule answers, for every delta."""
    return search_in(World(number, question))


def search_in(world: World, rule: Judge = judge) -> list[Answer]:
    """What is answered, for every delta, when confirmations are judged by this rule."""
    memory = InMemoryHistory()

    def judged(layers: LayerSet, confidence: float) -> Judgement:
        return world.judge(layers, state.confirmations.uncollapsed, confidence, rule)

    state = SearchState(world.question.settings, memory, judged)
    search = Search(state, world.run_jobs, NullObserver())
    answers = search.run()
    tried = {trial.layers for trial in memory.history if not trial.layers.is_full}
    chosen = [(word_for(state, layers, delta), delta, layers) for delta, layers in answers.items()]
    chosen += [("one seed", delta, one_seed(world, tried, delta)) for delta in answers]
    return [
        Answer(name, world.number, not layers.is_full, world.lost(layers) - delta) for name, delta, layers in chosen
    ]


def word_for(state: SearchState, layers: LayerSet, delta: float) -> str:
    judgement = None if layers.is_full else state.judge(layers, delta)
    return verdict_word(layers, delta, judgement, criterion=state.settings.criterion)


def one_seed(world: World, tried: Iterable[LayerSet], delta: float) -> LayerSet:
    """The rule of the literature: the smallest set that, in one run, came out within delta where it was chosen."""
    full = LayerSet.full(LAYERS)
    scores = {layers: world.outcomes(layers, "selection")[0].mean() for layers in (full, *tried)}
    holding = [layers for layers in tried if scores[full] - scores[layers] <= delta]
    return min(holding, key=lambda layers: (layers.depth, -scores[layers]), default=full)


def rows(question: SearchProblem, answers: Sequence[Answer], studies: int) -> Iterator[tuple[object, ...]]:
    """Per rule: how often it gives a smaller model, how many of these break delta, and in how many studies one does."""
    for rule in ("certified", "observed", "one seed"):
        given = [answer for answer in answers if answer.rule == rule and answer.smaller]
        wrong = [answer for answer in given if answer.excess > 0]
        if given:
            yield (
                question,
                rule,
                f"{len(given) / studies / len(question.deltas):.0%}",
                f"{len(wrong) / len(given):.1%}",
                f"{len({answer.study for answer in wrong}) / studies:.1%}",
                f"{fmean(answer.excess for answer in wrong):.2f}" if wrong else "-",
            )


QUESTIONS = (
    SearchProblem("observed"),
    SearchProblem("certified"),
    SearchProblem("certified", (1.0,), tried=1),
    SearchProblem("certified", (1.0,), tried=5),
)
HEADERS = ("studies", "rule", "smaller models", "of them wrong", "studies with a wrong one", "points too many")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    found: list[tuple[object, ...]] = []
    for question in QUESTIONS:
        played = Parallel(arguments.workers)(delayed(play)(number, question) for number in range(arguments.studies))
        found += rows(question, [answer for study in played for answer in study], arguments.studies)
    print(tabulate(found, headers=HEADERS))


if __name__ == "__main__":
    main()
