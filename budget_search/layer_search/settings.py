"""What a search is given: everything decided beforehand, where it keeps what it finds, and whom it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from budget_search.core.config import RECIPES, Criterion, Recipe
from budget_search.core.layers import LayerSet
from budget_search.core.limits import Limits
from budget_search.core.trial import FULL_RUNG, Job, SearchBudget, Trial, TrialKey

# As many sets are screened in any case, however long that takes.
FEWEST_SCREENS = 12
# Screens: as short as still ranks layer sets, in steps and as a fraction of the recipe. On a recorded 6-layer table 31
# steps ranked sets alike whatever the seed, and wrongly; 125 steps ranked them well.
SCREEN_STEPS = 150
SHORTEST_RUNG = 1 / 24
LONGEST_RUNG = 1 / 2
# What is spent on screens in all, in full fine-tunes, when a screened set keeps this share of the layers.
SCREEN_EQUIVALENTS = 2.0
MEAN_SHARE_OF_LAYERS = 0.58
MOST_SCREENS = 60


class History(Protocol):
    """Where finished trials are kept, and what was decided before the first confirmation."""

    @property
    def history(self) -> list[Trial]: ...

    def find(self, key: TrialKey) -> Trial | None: ...

    def append(self, trial: Trial) -> None: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def set_facts(self, **facts: Any) -> None: ...


class SearchObserver(Protocol):
    """Who is told how the search goes."""

    def stage(self, text: str) -> None: ...

    def started(self, job: Job) -> None: ...

    def finished(self, trial: Trial) -> None: ...

    def answered(self, delta: float, layers: LayerSet) -> None: ...


@dataclass(frozen=True)
class SearchSettings:
    """Everything a search decides beforehand. Deltas are in points; ``named`` sets are measured instead of searched;
    those to ``start`` from are screened first; the baseline's run with ``teacher_seed`` teaches smaller models, where
    the recipe has one teach them (None: the first of the seeds)."""

    total: int
    deltas: tuple[float, ...]
    strategy: str
    seeds: tuple[int, ...]
    screen_seed: int
    screen_rung: float
    evaluations: int
    sampler: str = "tpe"
    criterion: Criterion = "observed"
    confidence: float = 0.95
    width: int = 1
    fixed: frozenset[int] = frozenset()
    limits: Limits = field(default_factory=Limits)
    similarities: tuple[float, ...] | None = None
    named: tuple[LayerSet, ...] = ()
    start: tuple[LayerSet, ...] = ()
    budget: SearchBudget = field(default_factory=SearchBudget)
    recipe: Recipe = RECIPES["standard"]
    teacher_seed: int | None = None

    @property
    def teacher(self) -> TrialKey | None:
        """The baseline's run whose outputs smaller models learn from."""
        if not self.recipe.distil:
            return None
        seed = self.seeds[0] if self.teacher_seed is None else self.teacher_seed
        return TrialKey(LayerSet.full(self.total), FULL_RUNG, seed)

    @property
    def builds_on_full(self) -> bool:
        """Whether smaller models take over weights or outputs of the full one, which must be finished by then."""
        return self.recipe.dropping == "untrained" or self.teacher is not None

    def evaluations_until(self, position: int, rung: float) -> int:
        """How many layer sets may be screened at a rung by the end of the delta at this position, the largest first.

        The first has the largest part, since what it screens serves the others as well; ``auto``, which screens for
        all deltas at once, has everything. Of longer screens there are fewer, so that all of them take no longer.
        """
        evaluations = max(min(self.evaluations, FEWEST_SCREENS), round(self.evaluations * self.screen_rung / rung))
        if self.strategy == "auto" or len(self.deltas) == 1:
            return evaluations
        return round(evaluations * (0.7 + 0.3 * (position + 1) / len(self.deltas)))


def screen_rung(full_steps: int) -> float:
    """The fraction of the recipe that a screen gets: enough steps to say something, half at the most."""
    return min(LONGEST_RUNG, max(SHORTEST_RUNG, SCREEN_STEPS / full_steps))


def screens_for(rung: float, total: int) -> int:
    """How many layer sets are screened at this rung: for about two full fine-tunes, but never very few or many."""
    screens = round(SCREEN_EQUIVALENTS / (rung * MEAN_SHARE_OF_LAYERS))
    return min(max(screens, FEWEST_SCREENS), MOST_SCREENS, 2**total - 2)
