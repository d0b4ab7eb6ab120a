"""Measures how often an answer is wrong, in simulated studies with known true degradations.

    python examples/certainty.py --studies 1000                        every world and rule as a table
    python examples/certainty.py --worlds ordinary --format json       one object a line
    python examples/certainty.py --worlds ordinary --later 0.5 1.5     further questions to the finished studies

Every study has its own model, task and noise: outcomes of single examples, of which two models differ on a few (a third
to a half of these with every seed), seeds, and screens that exaggerate. The search loop and the verdict are those of
the package. Each study is searched once by every criterion. The rule `likely, certify 3` goes on with the search by
`likely` and runs at most three further seeds of its answers. The rule `likely, asked later` asks for other deltas when
the search has ended, one after the other, and reuses what was measured. `stated` is the mean of the probabilities that
the answers by `likely` state, which should be the share of right ones. The rule `one seed` is that of the literature:
one run, and the same examples for choosing and for scoring.

In the worlds named `worst case` the true degradation of every measured set is slightly above delta, so every smaller
answer is wrong, and several sets give several chances to err.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from statistics import fmean

import numpy as np
from joblib import Parallel, delayed
from scipy import special
from tabulate import tabulate

from budget_search.core.config import DEFAULT_CERTIFY
from budget_search.core.formatting import plural
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, Trial
from budget_search.data.metrics import contributions
from budget_search.layer_search.acquisition import candidate_sets
from budget_search.layer_search.confirmation import Confirmations
from budget_search.layer_search.loop import Search
from budget_search.layer_search.settings import SearchSettings, screens_for
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.verdict import Criterion, Judgement, judge, verdict_word
from budget_search.simulation.replay import InMemoryHistory, NullObserver

Judge = Callable[[np.ndarray, Mapping[LayerSet, np.ndarray], float, Sequence[np.ndarray]], dict[LayerSet, Judgement]]

LAYERS = 8
SELECTION = 2_000
SEED_SD = (0.2, 1.0)
# Share of the variance between seeds that all layer sets have in common.
SHARED = (0.0, 0.5)
# An example is correct if a latent normal variable is below a threshold. The first is the share of its variance due to
# the layer set, the second the share due to a single run, relative to the first. Two models then differ on 3 to 7 % of
# the examples, and a third to a half of the variance of these differences remains when the seed changes.
SET_SHARE, RUN_SHARE = (0.01, 0.06), (0.5, 0.8)
# With heavy tails, one run in ten loses this many points more.
BAD_RUN, BAD_RUN_LOSES = 0.1, (3.0, 10.0)
# With unequal variances, the logarithm of a set's standard deviation between seeds varies by this much.
UNEQUAL = 0.6


@dataclass(frozen=True)
class World:
    """What the studies of one kind have in common.

    ``baseline`` is the full model's true score in points, ``positives`` the share of label 1, ``examples`` the sizes of
    certification. ``half_recipe``: screens run half of the recipe instead of a sixth.
    """

    name: str = "ordinary"
    metric: str = "accuracy"
    baseline: float = 88.0
    positives: float = 0.5
    examples: tuple[int, ...] = (277, 872, 2_000, 5_000)
    heavy_tails: bool = False
    unequal: bool = False
    half_recipe: bool = False

    @property
    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Expected scores in points, ascending, and the parameter that gives each: the chance of a correct answer, or
        the correlation with the label."""
        if self.metric == "spearman":
            correlation = np.linspace(0.0, 1.0, 10_001)
            return 600 / math.pi * np.arcsin(correlation / 2), correlation
        chance, share = np.linspace(0.5, 1.0, 10_001), self.positives
        both = share * chance
        predicted = both + (1 - share) * (1 - chance)
        if self.metric == "f1":
            return 200 * both / (predicted + share), chance
        if self.metric == "matthews":
            scale = np.sqrt(predicted * (1 - predicted) * share * (1 - share))
            return 100 * (both - predicted * share) / scale, chance
        return 100 * chance, chance

    def parameter(self, score: np.ndarray) -> np.ndarray:
        """The chance of a correct answer, or the correlation, that gives these expected scores (points)."""
        return np.interp(score, *self._grid)


WORLDS = {
    world.name: world
    for world in (
        World(),
        World("heavy-tailed seeds", heavy_tails=True),
        World("unequal variances", unequal=True),
        World("277 examples", examples=(277,)),
        World("20,000 examples", examples=(20_000,)),
        World("screens at half the recipe", half_recipe=True),
        World("95/5 classes", baseline=97.0, positives=0.05),
        World("F1", metric="f1", positives=0.35),
        World("Matthews", metric="matthews", baseline=60.0, positives=0.3),
        World("Spearman", metric="spearman"),
    )
}


@dataclass(frozen=True)
class Scenario:
    """How the studies of a world are searched. Deltas are in points.

    In the worst case ``tried`` sets are measured, each with a true degradation slightly above the first delta; with 0
    the study is searched. With ``certify`` the search goes on with that many further seeds for its answers; then, by
    the criterion, with ``later`` deltas one by one. ``examples`` (on certification) and ``seed_sd`` (points)
    are random if not given.
    """

    criterion: Criterion = "likely"
    deltas: tuple[float, ...] = (1.0, 2.0, 3.0)
    tried: int = 0
    seeds: int = 3
    certify: int = 0
    later: tuple[float, ...] = ()
    examples: int | None = None
    seed_sd: float | None = None
    world: World = field(default_factory=World)

    def __str__(self) -> str:
        name = f"worst case, {plural(self.tried, 'set')}" if self.tried else self.world.name
        return name if self.seeds == 3 else f"{name}, {plural(self.seeds, 'seed')}"

    @property
    def settings(self) -> SearchSettings:
        rung = 1 / 2 if self.world.half_recipe else 1 / 6
        return SearchSettings(
            total=LAYERS,
            deltas=self.deltas,
            strategy="auto",
            seeds=tuple(range(42, 42 + self.seeds)),
            screen_seed=7,
            screen_rung=rung,
            evaluations=screens_for(rung, LAYERS),
            criterion=self.criterion,
            width=4,
            named=tuple(LayerSet.dropping((index,), LAYERS) for index in range(self.tried)),
        )


class Study:
    """A simulated study with known degradations. The same number gives the same study in any order of calls."""

    def __init__(self, number: int, scenario: Scenario) -> None:
        self.number, self.scenario, self.world = number, scenario, scenario.world
        draw = np.random.default_rng([20261120, number])
        drawn_examples, drawn_sd = int(draw.choice(self.world.examples)), float(draw.uniform(*SEED_SD))
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

    def smallest_depth(self, delta: float) -> int:
        """The fewest layers of a set whose true degradation is within delta (points)."""
        within = [each.depth for each in candidate_sets(LAYERS, (), ()) if self.degradation(each) <= delta]
        return min(within, default=LAYERS)

    def run_jobs(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        return map(self.measure, filter(None, jobs))

    def measure(self, job: Job) -> Trial:
        layers, key = job.key.layers, job.key
        if key.rung == FULL_RUNG:
            score = float(self.runs(layers, [key.seed]).mean())
        else:
            noise = 0.0 if layers.is_full else float(self._draw("screen", layers).normal(0, self.seed_sd + 0.3))
            score = max(0.0, self.world.baseline - 3 - self.slope * self.degradation(layers) - noise)
        return Trial(key, job.split, "complete", score, train_tokens=round(1000 * key.rung))

    def judge(self, layers: LayerSet, confirmations: Confirmations, confidence: float, rule: Judge) -> Judgement:
        """Compare with the baseline as the package does, pooling the variance between seeds over all confirmed sets."""
        sets = [each for each in confirmations.uncollapsed if each != layers]
        others = [self.runs(each, confirmations.seeds_of(each)).mean(axis=1) for each in sets]
        baseline, own = (self.runs(each, confirmations.seeds_of(layers)) for each in (confirmations.full, layers))
        return rule(baseline, {layers: own}, confidence, others)[layers]

    def runs(self, layers: LayerSet, seeds: Sequence[int]) -> np.ndarray:
        """The outcomes with these seeds on certification."""
        first = self.scenario.settings.seeds[0]
        return self.outcomes(layers, "certification")[[seed - first for seed in seeds]]

    def _outcomes(self, layers: LayerSet, split: str) -> np.ndarray:
        """Contributions (seeds, examples) in points, with the true score as their expectation; further seeds last."""
        size = self.examples if split == "certification" else SELECTION
        seeds, more = self.scenario.seeds, self.scenario.certify
        easiness = self._draw("ease", split).normal(0, math.sqrt(1 - self.set_share - self.run_share), size)
        own = self._draw("own", split, layers)
        draws = ((own, seeds), (self._draw("further", split, layers), more))
        common = self._draw("seeds", split).normal(0, math.sqrt(self.shared), seeds + more)
        single = np.concatenate([draw.normal(0, math.sqrt(1 - self.shared), number) for draw, number in draws])
        seed_effects = self.seed_sd * (common + single)
        latent = easiness + own.normal(0, math.sqrt(self.set_share), size)
        latent = latent + np.concatenate(
            [draw.normal(0, math.sqrt(self.run_share), (number, size)) for draw, number in draws]
        )
        if self.world.unequal:
            seed_effects = seed_effects * math.exp(self._draw("spread", layers).normal(0, UNEQUAL))
        if self.world.heavy_tails:
            draws = ((self._draw("bad", split, layers), seeds), (self._draw("bad further", split, layers), more))
            lost = [(draw.random(number) < BAD_RUN) * draw.uniform(*BAD_RUN_LOSES, number) for draw, number in draws]
            seed_effects = seed_effects - np.concatenate(lost)
        parameter = self.world.parameter(self.world.baseline - self.degradation(layers) + seed_effects)[:, None]
        labels, outputs = self._answers(latent, np.clip(parameter, 0.001, 0.999), split)
        return np.array([contributions(self.world.metric, each, labels) for each in outputs])

    def _answers(self, latent: np.ndarray, parameter: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Labels (examples,) and outputs (seeds, examples, 1 or 2) of models with these latent normal variables."""
        draw, size = self._draw("labels", split), latent.shape[1]
        if self.world.metric == "spearman":
            truth = draw.normal(size=size)
            return truth, (parameter * truth + np.sqrt(1 - parameter**2) * latent)[:, :, None]
        labels = (draw.random(size) < self.world.positives).astype(np.int64)
        predicted = np.where(latent < special.ndtri(parameter), labels, 1 - labels)
        return labels, np.stack([1 - predicted, predicted], axis=-1)

    def _draw(self, *names: str | LayerSet) -> np.random.Generator:
        words = [sum(2**index for index in w.kept) if isinstance(w, LayerSet) else sum(w.encode()) for w in names]
        return np.random.default_rng([self.number, *words])


@dataclass(frozen=True)
class Answer:
    """The answer of a rule to one delta of one study.

    ``excess`` is the true degradation minus delta, in points; ``layers_above`` its depth minus that of the smallest set
    that truly holds; ``equivalents`` the cost of the whole search in full fine-tunes of the full model. ``stated`` is
    the probability of being right that the answer states.
    """

    rule: str
    verdict: str
    stated: float | None
    study: int
    smaller: bool
    excess: float
    layers_above: int
    equivalents: float


def search_in(study: Study, rule: Judge = judge) -> list[Answer]:
    """The answers to every delta by the scenario's criterion, if confirmations are compared by ``rule``."""
    memory, scenario = InMemoryHistory(), study.scenario
    answers = _search(study, memory, scenario.settings, scenario.criterion, rule)
    if scenario.certify:
        settings = replace(scenario.settings, certify=scenario.certify)
        answers += _search(study, memory, settings, certifying(scenario), rule)
    for delta in scenario.later:
        settings = replace(scenario.settings, deltas=(delta,))
        answers += _search(study, memory, settings, asked_later(scenario), rule)
    return answers


def certifying(scenario: Scenario) -> str:
    """The name of the rule that adds further seeds to the answers of the criterion."""
    return f"{scenario.criterion}, certify {scenario.certify}"


def asked_later(scenario: Scenario) -> str:
    """The name of the rule that answers further questions to a finished study."""
    return f"{scenario.criterion}, asked later"


def state_of(study: Study, memory: InMemoryHistory, settings: SearchSettings, rule: Judge = judge) -> SearchState:
    """The state of a search in this study, with the trials in ``memory``."""

    def judged(layers: LayerSet, confidence: float) -> Judgement:
        return study.judge(layers, state.confirmations, confidence, rule)

    state = SearchState(settings, memory, judged)
    return state


def _search(study: Study, memory: InMemoryHistory, settings: SearchSettings, name: str, rule: Judge) -> list[Answer]:
    """The answers by the rule ``name`` and by `one seed`; trials in ``memory`` are not run again."""
    state = state_of(study, memory, settings, rule)
    answers = Search(state, study.run_jobs, NullObserver()).run()
    tried = sorted({trial.layers for trial in memory.history if not trial.layers.is_full})
    equivalents = sum(trial.rung * trial.layers.depth / LAYERS for trial in memory.history)
    chosen = [
        (name, _verdict(state, layers, delta), _stated(state, layers, delta), delta, layers)
        for delta, layers in answers.items()
    ]
    if name == settings.criterion:
        chosen += [("one seed", "one seed", None, delta, one_seed(study, tried, delta)) for delta in answers]
    return [
        Answer(
            rule=name,
            verdict=verdict,
            stated=stated,
            study=study.number,
            smaller=not layers.is_full,
            excess=study.degradation(layers) - delta,
            layers_above=layers.depth - study.smallest_depth(delta),
            equivalents=equivalents,
        )
        for name, verdict, stated, delta, layers in chosen
    ]


def _verdict(state: SearchState, layers: LayerSet, delta: float) -> str:
    judgement = None if layers.is_full else state.judge(layers, delta)
    return verdict_word(layers, delta, judgement, criterion=state.settings.criterion)


def _stated(state: SearchState, layers: LayerSet, delta: float) -> float | None:
    if layers.is_full or state.settings.criterion != "likely":
        return None
    return state.estimate(layers).probability_within(delta)


def one_seed(study: Study, tried: Iterable[LayerSet], delta: float) -> LayerSet:
    """The rule of the literature: the smallest set within delta in a single run, on the examples used for choosing."""
    full = LayerSet.full(LAYERS)
    scores = {layers: study.outcomes(layers, "selection")[0].mean() for layers in (full, *tried)}
    holding = [layers for layers in tried if scores[full] - scores[layers] <= delta]
    return min(holding, key=lambda layers: (layers.depth, -scores[layers]), default=full)


@dataclass(frozen=True)
class Row:
    """One rule in one world. Shares are of the answers with a smaller set; ``answers`` is their number.

    ``certified`` is the share with that verdict, ``stated`` the mean of the stated probabilities, ``layers_above`` the
    mean over all answers, the full model included.
    """

    world: str
    rule: str
    answers: int
    wrong: float
    wrong_by_half: float
    certified: float
    stated: float | None
    layers_above: float
    equivalents: float
    studies_wrong: float


def row(scenario: Scenario, rule: str, answers: Sequence[Answer]) -> Row:
    own = [answer for answer in answers if answer.rule == rule]
    given = [answer for answer in own if answer.smaller]
    wrong = {answer.study for answer in given if answer.excess > 0}
    stated = [answer.stated for answer in given if answer.stated is not None]

    def share(condition: Callable[[Answer], bool]) -> float:
        return sum(map(condition, given)) / len(given) if given else 0.0

    return Row(
        world=str(scenario),
        rule=rule,
        answers=len(given),
        wrong=share(lambda answer: answer.excess > 0),
        wrong_by_half=share(lambda answer: answer.excess > 0.5),
        certified=share(lambda answer: answer.verdict == "certified"),
        stated=fmean(stated) if stated else None,
        layers_above=fmean(answer.layers_above for answer in own),
        equivalents=fmean(answer.equivalents for answer in own),
        studies_wrong=len(wrong) / len({answer.study for answer in own}),
    )


def play(number: int, scenario: Scenario) -> list[Answer]:
    """Search the study of this number."""
    return search_in(Study(number, scenario))


def played(scenario: Scenario, studies: int, workers: int) -> list[Answer]:
    answers = Parallel(workers)(delayed(play)(number, scenario) for number in range(studies))
    return [answer for each in answers for answer in each]


def rows(world: str, studies: int, workers: int, later: tuple[float, ...] = ()) -> Iterator[Row]:
    """The rows of one world: a row per criterion, and one for `one seed` on the sets that `observed` measured."""
    if world.startswith("worst case"):
        scenario = WORST_CASES[world]
        yield row(scenario, "certified", played(scenario, studies, workers))
        return
    for criterion in ("likely",) if later else ("likely", "observed", "certified"):
        certify = DEFAULT_CERTIFY if criterion == "likely" and not later else 0
        scenario = Scenario(criterion, world=WORLDS[world], certify=certify, later=later)
        answers = played(scenario, studies, workers)
        yield row(scenario, criterion, answers)
        if certify:
            yield row(scenario, certifying(scenario), answers)
        if later:
            yield row(scenario, asked_later(scenario), answers)
        if criterion == "observed":
            yield row(scenario, "one seed", answers)


WORST_CASES = {str(each): each for each in (Scenario("certified", (1.0,), tried=tried) for tried in (1, 5))}
HEADERS = (
    "world",
    "rule",
    "answers",
    "wrong",
    "by > 0.5",
    "certified",
    "stated",
    "layers above",
    "equivalents",
    "studies wrong",
)
FORMATS = ("", "", "d", ".1%", ".1%", ".1%", ".1%", ".2f", ".1f", ".1%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = (*WORLDS, *WORST_CASES)
    parser.add_argument("--studies", type=int, default=1000, help="per world and criterion (default 1000)")
    parser.add_argument("--worlds", nargs="+", choices=names, default=names, metavar="WORLD", help=", ".join(names))
    parser.add_argument("--later", nargs="+", type=float, default=(), metavar="D", help="points; only `likely`")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    table = []
    for world in arguments.worlds:
        for each in rows(world, arguments.studies, arguments.workers, tuple(arguments.later)):
            if arguments.format == "json":
                print(json.dumps(asdict(each)), flush=True)
            cells = zip(FORMATS, asdict(each).values(), strict=True)
            table.append(["-" if value is None else format(value, style) for style, value in cells])
    if arguments.format == "text":
        print(tabulate(table, headers=HEADERS, disable_numparse=True))


if __name__ == "__main__":
    main()
