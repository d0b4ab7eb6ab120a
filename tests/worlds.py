"""Simulated evaluations for tests of the search: every layer has a known effect; noise, failures and collapses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, Trial
from budget_search.layer_search.loop import Search
from budget_search.layer_search.settings import SearchSettings
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.verdict import Judgement
from budget_search.simulation.replay import InMemoryHistory, NullObserver

BASELINE = 90.0
EFFECTS = (3.1, 2.2, 0.6, 0.3, 0.05, 0.9, 0.12, 0.4, 0.02, 0.7, 0.25, 0.08)


@dataclass
class World:
    """Runs jobs without fine-tuning: scores follow from the effects of the layers. ``asked`` records the jobs."""

    effects: Sequence[float] = EFFECTS
    seed_sd: float = 0.0
    screen_sd: float = 0.0
    collapses_below: Mapping[LayerSet, float] = field(default_factory=dict)
    misleading_below: float = 0.0
    diverging: frozenset[LayerSet] = frozenset()
    machine_failures: int = 0
    interrupt_after: int | None = None
    asked: list[Job] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.effects)

    def true_score(self, layers: LayerSet) -> float:
        return BASELINE - sum(self.effects[index] for index in layers.dropped)

    def run_jobs(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        for job in jobs:
            # Jobs run one at a time, so the next one never depends on a running one.
            assert job is not None
            if self.interrupt_after is not None and len(self.asked) >= self.interrupt_after:
                raise KeyboardInterrupt
            self.asked.append(job)
            yield self.measure(job)

    def measure(self, job: Job) -> Trial:
        key = job.key
        if self.machine_failures:
            self.machine_failures -= 1
            return Trial(key, job.split, "failed", error="out of memory", machine_failure=True)
        if key.layers in self.diverging and key.rung == FULL_RUNG:
            return Trial(key, job.split, "failed", error="the loss was nan")
        if key.rung < self.collapses_below.get(key.layers, 0.0):
            return Trial(key, job.split, "collapsed", 50.0)
        if key.rung < self.misleading_below and not key.layers.is_full:
            return Trial(key, job.split, "complete", 60 + 20 * uniform("nothing", key.layers, key.rung))
        noise = self.seed_sd if job.split == "certification" else self.screen_sd
        score = self.true_score(key.layers) + noise * normal(key.layers, key.rung, key.seed)
        tokens = round(1000 * key.rung)
        return Trial(key, job.split, "complete", score, train_tokens=tokens, train_seconds=1.0)


def settings(**changes: Any) -> SearchSettings:
    fields: dict[str, Any] = {
        "total": 12, "deltas": (1.0, 2.0, 3.0), "strategy": "auto", "seeds": (42, 43, 44), "screen_seed": 7,
        "screen_rung": 1 / 6, "evaluations": 30, "criterion": "observed",
    }  # fmt: skip
    return SearchSettings(**{**fields, **changes})


def search(
    world: World, memory: InMemoryHistory, wanted: SearchSettings | None = None, half_width: float = 0.3
) -> Search:
    """A search on these evaluations; at 95 % the upper bound is ``half_width`` points above the mean."""
    wanted = wanted or settings(total=world.total)

    def judge(layers: LayerSet, confidence: float) -> Judgement:
        values = state.confirmations.degradations(layers)
        return Judgement(
            degradation=math.fsum(values) / len(values),
            seed_variance=(half_width / 1.645) ** 2,
            example_variance=0.0,
            seed_degrees_of_freedom=10**6,
            seeds=len(values),
            examples=1000,
            confidence=confidence,
        )

    state = SearchState(wanted, memory, judge)
    return Search(state, world.run_jobs, NullObserver())


def fewest_layers(world: World, delta: float) -> int:
    """The depth of the smallest set within delta: the layers with the smallest effects are dropped."""
    degradation, depth = 0.0, world.total
    for effect in sorted(world.effects):
        degradation += effect
        if degradation > delta + 1e-9 or depth == 1:
            return depth
        depth -= 1
    return depth


def without_interruption(world: World) -> World:
    return replace(world, interrupt_after=None, asked=[])


def uniform(*key: object) -> float:
    """A number between 0 and 1, the same for the same key in every process."""
    return (crc32(repr(key).encode()) + 0.5) / 2**32


def normal(*key: object) -> float:
    """A standard normal number, the same for the same key in every process (Box-Muller)."""
    return math.sqrt(-2 * math.log(uniform("radius", *key))) * math.cos(2 * math.pi * uniform("angle", *key))
