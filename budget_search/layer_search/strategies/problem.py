"""What a strategy is asked, and the few things every strategy says about a history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from budget_search.core.layers import LayerSet
from budget_search.core.limits import Limits
from budget_search.core.trial import Tolerance, Trial
from budget_search.layer_search.acquisition import candidate_sets
from budget_search.layer_search.surrogate import FullRuns, Surrogate, combine_with_loss


@dataclass(frozen=True)
class SearchProblem:
    """What a strategy is asked, and the facts it may use.

    ``fixed`` are layers that must stay, ``limits`` what else the answer must satisfy. ``similarities`` (one per layer,
    only for ``contribution``) are the mean cosines between a layer's input and output at the classification token.
    ``width`` is how many evaluations run at the same time: a strategy that can, proposes that many. ``evaluations``
    caps the layer sets that a strategy without a natural end wants in the history, the full model's aside: it counts
    what is there already, so that an interrupted search goes on as if nothing had happened. ``deltas`` are all that
    the search has to answer, in points, for a strategy that looks for several at once. ``full_runs`` is what full runs
    lost so far, ``seed_sd`` the spread (points) of a full score between seeds, ``seeds`` how many a confirmation
    takes. ``among`` are the sets that can be measured at all, where these are not all: those of a recorded table.
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
        """Points that may be lost in full; ``tolerance`` says what a screen may lose for that."""
        return self.tolerance.full_delta

    def surrogate(self, history: Sequence[Trial]) -> Surrogate:
        """What any set will lose in full, as far as these screens and the full runs tell."""
        screens = [trial for trial in history if trial.state == "complete" and not trial.layers.is_full]
        lost = combine_with_loss(
            [self.tolerance.degradation(trial) for trial in screens],
            [self.tolerance.loss_increase(trial) for trial in screens],
        )
        screened = {trial.layers: points for trial, points in zip(screens, lost, strict=True)}
        return Surrogate.fit(self.total, screened, self.full_runs, self.seed_sd, self.seeds)

    @property
    def free(self) -> tuple[int, ...]:
        """The layers that may stay or go, ascending."""
        return tuple(index for index in range(self.total) if index not in self.fixed | self.limits.drop)

    def allows(self, layers: LayerSet) -> bool:
        """Whether a set of this model keeps every fixed layer, is within the limits and can be measured."""
        return (
            self.fixed.issubset(layers.kept)
            and self.limits.allow(layers)
            and (self.among is None or layers in self.among)
        )

    def sets(self, measured: Sequence[LayerSet]) -> list[LayerSet]:
        """Every set that is allowed; of a deep model those near the measured ones, and a sample."""
        return [
            layers
            for layers in candidate_sets(self.total, self.fixed, measured, self.limits.drop)
            if self.allows(layers)
        ]

    def room(self, history: Sequence[Trial]) -> int:
        """How many more layer sets ``evaluations`` leaves to be measured."""
        return max(0, self.evaluations - sum(not trial.layers.is_full for trial in history))


Strategy = Callable[[Sequence[Trial], SearchProblem], list[LayerSet]]
"""``propose(history, problem)``. The history holds one screen per layer set, sorted by key, the full model's too."""


def unmeasured(candidates: Iterable[LayerSet], history: Sequence[Trial], problem: SearchProblem) -> list[LayerSet]:
    """Those candidates a strategy may propose, in order: new, each once, smaller than the model, allowed."""
    seen = {trial.layers for trial in history}
    return [
        layers
        for layers in dict.fromkeys(candidates)
        if layers not in seen and not layers.is_full and problem.allows(layers)
    ]


def smallest_holding(history: Sequence[Trial], problem: SearchProblem) -> Trial | None:
    """The fewest layers within the tolerance; of several sets, the one that loses least, then the first by key."""
    tolerance = problem.tolerance
    holding = [trial for trial in history if tolerance.allows(trial) and problem.allows(trial.layers)]
    return min(holding, key=lambda trial: (trial.layers.depth, tolerance.degradation(trial), trial.key), default=None)
