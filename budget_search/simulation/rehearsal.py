"""Searches rehearsed on made-up models: what a plan will probably run, before anything is run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean

from joblib import Parallel, delayed

from budget_search.core.layers import LayerSet
from budget_search.core.limits import Limits
from budget_search.core.trial import FULL_RUNG, Job, SearchBudget, Trial, TrialKey
from budget_search.layer_search.loop import Search
from budget_search.layer_search.settings import SearchSettings
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.verdict import Judgement
from budget_search.simulation.generated_models import GeneratedModel, Noise
from budget_search.simulation.replay import InMemoryHistory, NullObserver

REHEARSALS = 30
"""The smallest and the largest of so many hold between them what happens in 29 of 31 further ones on average."""
# Deeper models are rehearsed with so many layers: what a search costs goes by shares of the depth.
DEEPEST, SHALLOWEST = 12, 4


def layers_trained(job: Job) -> float:
    """How long an evaluation takes, but for the scale, where nothing better is known."""
    return job.key.rung * job.key.layers.depth


@dataclass(frozen=True)
class Rehearsal:
    """One search: what ran, in the order in which it began; how many distinct answers; the seconds that the evaluations
    took, as many at a time as there are workers, and those that it took to decide."""

    total: int
    jobs: tuple[Job, ...]
    answers: int
    seconds: float
    deciding_seconds: float


class VirtualWorkers:
    """So many evaluations at a time, on a clock of their own."""

    def __init__(self, count: int, seconds: Callable[[Job], float], measure: Callable[[Job], Trial]) -> None:
        self.seconds = seconds
        self._count, self._measure = count, measure
        self.clock = 0.0
        self.begun: list[Job] = []

    def run(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        """Whatever is finished first comes first."""
        waiting, running = iter(jobs), dict[Job, float]()
        while True:
            while len(running) < self._count and (job := next(waiting, None)) is not None:
                running[job] = self.clock + self.seconds(job)
                self.begun.append(job)
            if not running:
                return
            first = min(running, key=lambda job: (running[job], job.key))
            self.clock = running.pop(first)
            yield self._measure(first)


def rehearse(
    settings: SearchSettings,
    processes: int,
    seconds: Callable[[Job], float] = layers_trained,
    *,
    first: int = 0,
    count: int | None = None,
) -> list[Rehearsal]:
    """Play the plan through on made-up models of about its depth, from number ``first`` on; the same plan is played
    alike. ``seconds`` tells how long an evaluation takes."""
    if settings.named:
        return [_of_named_sets(settings, seconds)]
    total = min(max(settings.total, SHALLOWEST), DEEPEST)
    # How long evaluations take here is not known there.
    budget = SearchBudget(max_trials=settings.budget.max_trials)
    if total == settings.total:
        settings = dataclasses.replace(settings, budget=budget)
    else:
        settings = dataclasses.replace(
            settings, total=total, budget=budget, fixed=frozenset(), limits=Limits(), similarities=None, start=()
        )
    if settings.strategy == "contribution" and settings.similarities is None:
        settings = dataclasses.replace(settings, similarities=tuple(index / total for index in range(total)))
    with Parallel(n_jobs=processes) as parallel:
        numbers = range(first, first + (count or REHEARSALS))
        return list(parallel(delayed(_play)(settings, number, seconds) for number in numbers))


def _of_named_sets(settings: SearchSettings, seconds: Callable[[Job], float]) -> Rehearsal:
    """Nothing to rehearse: what will run is known."""
    sets = [LayerSet.full(settings.total), *dict.fromkeys(settings.named)]
    jobs = [
        Job(TrialKey(layers, FULL_RUNG, seed), "certification", keep_weights=True)
        for layers in sets
        for seed in settings.seeds
    ]
    workers = VirtualWorkers(settings.width, seconds, lambda job: Trial(job.key, job.split, "complete", 0.0))
    for _ in workers.run(jobs):
        pass
    return Rehearsal(settings.total, tuple(jobs), len(sets) - 1, workers.clock, 0.0)


def _play(settings: SearchSettings, number: int, seconds: Callable[[Job], float]) -> Rehearsal:
    model, memory = GeneratedModel(number, settings.total, Noise()), InMemoryHistory()
    workers = VirtualWorkers(settings.width, seconds, model.measure)

    def judge(layers: LayerSet, confidence: float) -> Judgement:
        lost = state.confirmations.degradations(layers)
        # As with many certification examples: seeds alone blur.
        return Judgement(fmean(lost), 2 * model.noise.seed_sd**2 / len(lost), 0.0, 10, len(lost), 5_000, confidence)

    started = time.perf_counter()
    state = SearchState(settings, memory, judge)
    search = Search(state, workers.run, NullObserver())
    answers = {layers for layers in search.run().values() if not layers.is_full}
    return Rehearsal(settings.total, tuple(workers.begun), len(answers), workers.clock, time.perf_counter() - started)
