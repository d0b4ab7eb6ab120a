"""The problem that a strategy solves, and functions of the history that all strategies share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from budget_search.core.layers import LayerSet
from budget_search.core.limits import Limits
from budget_search.core.trial import Tolerance, Trial
from budget_search.layer_search.acquisition import MAX_ENUMERATED_DEPTH, candidate_sets
from budget_search.layer_search.pool import Pool
from budget_search.layer_search.surrogate import FullRuns, Surrogate, combine_with_loss


@dataclass(frozen=True)
class SearchProblem:
    """Find the smallest layer set whose degradation is within the tolerance.

    ``fixed`` layers must be kept; ``limits`` are further conditions on the answer. ``similarities`` (one per layer,
    only for ``contribution``) are mean cosines between a layer's input and output at the classification token.
    ``width`` evaluations run at the same time. ``evaluations`` is the most layer sets that the history may hold besides
    the full model; sets that are already there count, so a resumed search ends where an uninterrupted one does.
    ``deltas`` are all deltas of the search, in points. ``full_runs`` are the confirmations so far, ``seed_sd`` is the
    standard deviation of a full score between seeds in points, and a confirmation has ``seeds`` runs. ``among`` are the
    sets that can be measured, if not all can: those of a recorded table.
    """

    total: int
    tolerance: Tolerance
    fixed: frozenset[int] = frozenset()
    limits: Limits = field(default_factory=Limits)
    similarities: tuple[float, ...] | None = None
    sampler: str = "tpe"
    seed: int = 0
    width: int = 1
    evaluations: int = 40
    deltas: tuple[float, ...] = ()
    full_runs: Mapping[LayerSet, FullRuns] = field(default_factory=dict)
    seed_sd: float = 0.5
    seeds: int = 3
    among: frozenset[LayerSet] | None = None

    @property
    def delta(self) -> float:
        """The accepted degradation of a full run, in points; ``tolerance`` has the one of a screen."""
        return self.tolerance.full_delta

    def surrogate(self, history: Sequence[Trial], without: LayerSet | None = None) -> Surrogate:
        """The surrogate model, fitted to these screens and to the full runs, except those of the set ``without``."""
        screens = [trial for trial in history if trial.state == "complete" and not trial.layers.is_full]
        degradations = combine_with_loss(
            [self.tolerance.degradation(trial) for trial in screens],
            [self.tolerance.loss_increase(trial) for trial in screens],
        )
        screened = {trial.layers: points for trial, points in zip(screens, degradations, strict=True)}
        full_runs = {layers: runs for layers, runs in self.full_runs.items() if layers != without}
        return Surrogate.fit(self.total, screened, full_runs, self.seed_sd, self.seeds)

    @property
    def free(self) -> tuple[int, ...]:
        """The layers that may be kept or dropped, ascending."""
        return tuple(index for index in range(self.total) if index not in self.fixed | self.limits.drop)

    def allows(self, layers: LayerSet) -> bool:
        """Whether a set keeps the fixed layers, is within the limits and can be measured."""
        return _allows(layers, self.fixed, self.limits, self.among)

    def pool(self, measured: Sequence[LayerSet]) -> Pool:
        """The allowed sets; of a deep model only those near the measured ones and a sample (see ``candidate_sets``)."""
        if self.total <= MAX_ENUMERATED_DEPTH:
            return _every_allowed(self.total, self.fixed, self.limits, self.among)
        candidates = candidate_sets(self.total, self.fixed, measured, self.limits.drop)
        return Pool.of([layers for layers in candidates if self.allows(layers)], self.total)

    def remaining_evaluations(self, history: Sequence[Trial]) -> int:
        """How many more layer sets may be measured."""
        return max(0, self.evaluations - sum(not trial.layers.is_full for trial in history))


def _allows(layers: LayerSet, fixed: frozenset[int], limits: Limits, among: frozenset[LayerSet] | None) -> bool:
    return fixed.issubset(layers.kept) and limits.allow(layers) and (among is None or layers in among)


@lru_cache(maxsize=8)
def _every_allowed(total: int, fixed: frozenset[int], limits: Limits, among: frozenset[LayerSet] | None) -> Pool:
    """Of a model so shallow that all sets are considered; every decision of a search needs them."""
    candidates = candidate_sets(total, fixed, (), limits.drop)
    return Pool.of([layers for layers in candidates if _allows(layers, fixed, limits, among)], total)


Strategy = Callable[[Sequence[Trial], SearchProblem], list[LayerSet]]
"""``propose(history, problem)``. The history holds one screen per layer set, sorted by key, with the full model's."""


def unmeasured(candidates: Iterable[LayerSet], history: Sequence[Trial], problem: SearchProblem) -> list[LayerSet]:
    """The candidates that a strategy may propose, in order: new, without repeats, smaller than the model, allowed."""
    seen = {trial.layers for trial in history}
    return [
        layers
        for layers in dict.fromkeys(candidates)
        if layers not in seen and not layers.is_full and problem.allows(layers)
    ]


def smallest_holding(history: Sequence[Trial], problem: SearchProblem) -> Trial | None:
    """The smallest set within the tolerance; ties go to the lowest degradation, then to the first key."""
    tolerance = problem.tolerance
    holding = [trial for trial in history if tolerance.allows(trial) and problem.allows(trial.layers)]
    return min(holding, key=lambda trial: (trial.layers.depth, tolerance.degradation(trial), trial.key), default=None)
