"""The interface of a search: its settings, where it stores trials, and who observes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from budget_search.core.config import RECIPES, Criterion, Recipe
from budget_search.core.dropping import starts_from_full
from budget_search.core.layers import LayerSet
from budget_search.core.limits import Limits
from budget_search.core.trial import FULL_RUNG, Job, SearchBudget, Split, Trial, TrialKey

# At least this many sets are screened.
FEWEST_SCREENS = 12
# The length of a screen in optimizer steps, and its bounds as a fraction of the recipe. On a recorded 6-layer table the
# ranking after 31 steps was the same for every seed and wrong; after 125 steps it was good.
SCREEN_STEPS = 150
SHORTEST_RUNG = 1 / 24
LONGEST_RUNG = 1 / 2
# The cost of all screens in full fine-tune equivalents, assuming that a screened set keeps this share of the layers.
SCREEN_EQUIVALENTS = 2.0
MEAN_SHARE_OF_LAYERS = 0.58
MOST_SCREENS = 60


class History(Protocol):
    """Stores the finished trials of a study, and facts such as the plan of the search."""

    @property
    def history(self) -> list[Trial]: ...

    def find(self, key: TrialKey) -> Trial | None: ...

    def append(self, trial: Trial) -> None: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def set_facts(self, **facts: Any) -> None: ...


class SearchObserver(Protocol):
    """Receives the progress of a search."""

    def stage(self, text: str) -> None: ...

    def started(self, job: Job) -> None: ...

    def finished(self, trial: Trial) -> None: ...

    def answered(self, delta: float, layers: LayerSet) -> None: ...


@dataclass(frozen=True)
class Advice:
    """What a message recommends where a search cannot go on, and for a set that missed delta.

    The defaults name options of the command line. ``confirm`` is empty where layers cannot be named.
    """

    not_trainable: str = "try a lower --lr or --precision fp32"
    machine_failed: str = (
        "free memory, or try --workers 1 or a smaller --batch-size or --max-length, then repeat the command"
    )
    not_learnt: str = "try more --epochs or --train-examples, another --lr, or check the labels"
    budget: str = "--max-trials, --max-hours"
    seeds: str = "--seeds {seeds}"
    confirm: str = "A confirmation would settle it: --layers {layers}."


@dataclass(frozen=True)
class SearchSettings:
    """The settings of a search; they do not change while it runs.

    ``deltas`` are in points. If there are ``named`` sets, exactly these are measured. The sets in ``start`` are
    screened first. ``width`` evaluations run at the same time, ``evaluations`` sets are screened. With distillation the
    teacher is the baseline's run with ``teacher_seed`` (None: the first of ``seeds``). ``certify`` is the number of
    further seeds that the answers may have (see ``certification``). The default ``recipe`` trains smaller models
    without the full one, as a user's objective does.
    """

    total: int
    deltas: tuple[float, ...]
    strategy: str
    seeds: tuple[int, ...]
    screen_seed: int
    screen_rung: float
    evaluations: int
    sampler: str = "tpe"
    criterion: Criterion = "likely"
    confidence: float = 0.95
    probability: float = 0.8
    width: int = 1
    fixed: frozenset[int] = frozenset()
    limits: Limits = field(default_factory=Limits)
    similarities: tuple[float, ...] | None = None
    named: tuple[LayerSet, ...] = ()
    start: tuple[LayerSet, ...] = ()
    budget: SearchBudget = field(default_factory=SearchBudget)
    recipe: Recipe = RECIPES["paper"]
    teacher_seed: int | None = None
    advice: Advice = Advice()
    certify: int = 0

    @property
    def further_seeds(self) -> tuple[int, ...]:
        """The seeds, beside ``seeds``, that answers are certified with, in their order."""
        first = max(self.seeds) + 1
        return tuple(range(first, first + self.certify))

    @property
    def teacher(self) -> TrialKey | None:
        """The baseline's run that is the teacher in distillation; None without distillation."""
        if not self.recipe.distil:
            return None
        seed = self.seeds[0] if self.teacher_seed is None else self.teacher_seed
        return TrialKey(LayerSet.full(self.total), FULL_RUNG, seed)

    @property
    def builds_on_full(self) -> bool:
        """Whether smaller models need weights or outputs of the full one."""
        return starts_from_full(self.recipe) or self.teacher is not None

    def waits_for_full(self, split: Split, running: Iterable[Job]) -> bool:
        """Whether smaller models on this split need a run of the full one that is still running: the weights of the
        same split's runs, or the outputs of the teacher."""
        full = [job for job in running if job.key.layers.is_full]
        weights = starts_from_full(self.recipe) and any(job.split == split for job in full)
        return weights or self.teacher in {job.key for job in full}

    def evaluations_until(self, position: int, rung: float) -> int:
        """How many sets may have a screen at this rung when the delta at this position (largest first) is answered.

        The largest delta has the largest share, because its screens serve the smaller ones too. ``auto`` screens for
        all deltas at once and has no shares. If screens are longer, there are fewer of them, at the same total cost.
        """
        evaluations = max(min(self.evaluations, FEWEST_SCREENS), round(self.evaluations * self.screen_rung / rung))
        if self.strategy == "auto" or len(self.deltas) == 1:
            return evaluations
        return round(evaluations * (0.7 + 0.3 * (position + 1) / len(self.deltas)))


def screen_rung(full_steps: int) -> float:
    """The rung of the first screens: ``SCREEN_STEPS`` as a fraction of the recipe's steps, within the bounds."""
    return min(LONGEST_RUNG, max(SHORTEST_RUNG, SCREEN_STEPS / full_steps))


def screens_for(rung: float, total: int) -> int:
    """How many sets to screen at this rung: for about two full fine-tunes in total, within bounds."""
    screens = round(SCREEN_EQUIVALENTS / (rung * MEAN_SHARE_OF_LAYERS))
    return min(max(screens, FEWEST_SCREENS), MOST_SCREENS, 2**total - 2)
