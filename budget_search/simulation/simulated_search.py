"""Simulated searches on generated models, which predict the evaluations of a real search before it runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Protocol

from budget_search.core.layers import LayerSet
from budget_search.core.limits import Limits
from budget_search.core.trial import FULL_RUNG, Job, SearchBudget, Trial, TrialKey
from budget_search.layer_search.loop import Search
from budget_search.layer_search.settings import SearchSettings
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.verdict import Judgement
from budget_search.simulation.generated_models import GeneratedModel, Noise
from budget_search.simulation.replay import InMemoryHistory, NullObserver

SIMULATIONS = 19
"""The range of 19 simulations contains a further one with probability 18/20."""
# Other depths are simulated with the nearest of these; costs are relative to the depth.
MAX_LAYERS, MIN_LAYERS = 12, 4


def layers_trained(job: Job) -> float:
    """The relative duration of an evaluation, for use without measured times."""
    return job.key.rung * job.key.layers.depth


@dataclass(frozen=True)
class SimulatedSearch:
    """One simulated search.

    ``jobs`` are in the order of their start. ``answers`` is the number of distinct smaller answers. ``seconds`` is the
    simulated duration on the workers, ``deciding_seconds`` the real time that the search itself took.
    """

    total: int
    jobs: tuple[Job, ...]
    answers: int
    seconds: float
    deciding_seconds: float


class VirtualWorkers:
    """Workers on a simulated clock, for ``count`` evaluations at a time."""

    def __init__(self, count: int, seconds: Callable[[Job], float], measure: Callable[[Job], Trial]) -> None:
        self.seconds = seconds
        self._count, self._measure = count, measure
        self.clock = 0.0
        self.started: list[Job] = []

    def run(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        """Yield trials in the order in which they finish on the simulated clock."""
        waiting, running = iter(jobs), dict[Job, float]()
        while True:
            while len(running) < self._count and (job := next(waiting, None)) is not None:
                running[job] = self.clock + self.seconds(job)
                self.started.append(job)
            if not running:
                return
            first = min(running, key=lambda job: (running[job], job.key))
            self.clock = running.pop(first)
            yield self._measure(first)


class Map(Protocol):
    """``map``, or that of an executor whose processes share the work."""

    def __call__(
        self, function: Callable[[int], SimulatedSearch], numbers: Iterable[int], /
    ) -> Iterator[SimulatedSearch]: ...


def simulate_searches(
    settings: SearchSettings,
    seconds: Callable[[Job], float] = layers_trained,
    *,
    first: int = 0,
    count: int | None = None,
    run: Map = map,
) -> list[SimulatedSearch]:
    """Run the search on ``count`` generated models (default ``SIMULATIONS``), from number ``first`` on.

    ``seconds`` gives the duration of an evaluation. The result is the same for the same settings, wherever ``run`` has
    the simulations run.
    """
    if settings.named:
        return [_measure_named_sets(settings, seconds)]
    total = min(max(settings.total, MIN_LAYERS), MAX_LAYERS)
    # A limit on hours applies to real time, not to the simulated clock.
    budget = SearchBudget(max_trials=settings.budget.max_trials)
    if total == settings.total:
        settings = dataclasses.replace(settings, budget=budget)
    else:
        settings = dataclasses.replace(
            settings, total=total, budget=budget, fixed=frozenset(), limits=Limits(), similarities=None, start=()
        )
    if settings.strategy == "contribution" and settings.similarities is None:
        settings = dataclasses.replace(settings, similarities=tuple(index / total for index in range(total)))
    return list(run(partial(_simulate, settings, seconds), range(first, first + (count or SIMULATIONS))))


def _measure_named_sets(settings: SearchSettings, seconds: Callable[[Job], float]) -> SimulatedSearch:
    """With given layer sets the evaluations are known, so only their duration is simulated."""
    sets = [LayerSet.full(settings.total), *dict.fromkeys(settings.named)]
    jobs = [
        Job(TrialKey(layers, FULL_RUNG, seed), "certification", keep_weights=True)
        for layers in sets
        for seed in settings.seeds
    ]
    workers = VirtualWorkers(settings.width, seconds, lambda job: Trial(job.key, job.split, "complete", 0.0))
    for _ in workers.run(jobs):
        pass
    return SimulatedSearch(settings.total, tuple(jobs), len(sets) - 1, workers.clock, 0.0)


def _simulate(settings: SearchSettings, seconds: Callable[[Job], float], number: int) -> SimulatedSearch:
    model, memory = GeneratedModel(number, settings.total, Noise()), InMemoryHistory()
    workers = VirtualWorkers(settings.width, seconds, model.measure)

    def judge(layers: LayerSet, confidence: float) -> Judgement:
        values = state.confirmations.degradations(layers)
        # With many certification examples only the variance between seeds matters.
        variance = 2 * model.noise.seed_sd**2 / len(values)
        return Judgement(fmean(values), variance, 0.0, 10, len(values), 5_000, confidence)

    started = time.perf_counter()
    state = SearchState(settings, memory, judge)
    search = Search(state, workers.run, NullObserver())
    answers = {layers for layers in search.run().values() if not layers.is_full}
    return SimulatedSearch(
        settings.total, tuple(workers.started), len(answers), workers.clock, time.perf_counter() - started
    )
