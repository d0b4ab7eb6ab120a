"""What a study has found so far, and the answers that follow from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import NormalDist

from budget_search.core.layers import LayerSet
from budget_search.core.trial import Trial, TrialKey
from budget_search.layer_search.confirmation import Confirmations
from budget_search.layer_search.screening import Screens
from budget_search.layer_search.settings import History, SearchSettings
from budget_search.layer_search.strategies.problem import SearchProblem
from budget_search.layer_search.verdict import Judgement, share_of_error

USUAL_SAMPLER, USUAL_CONFIDENCE = "tpe", 0.95


class SearchState:
    """A question's view of one study, which grows as trials are recorded.

    ``compare(layers, confidence)`` compares a set that has all its confirmations with the baseline.
    """

    def __init__(
        self, settings: SearchSettings, store: History, compare: Callable[[LayerSet, float], Judgement]
    ) -> None:
        self.settings = settings
        self._store = store
        self._compare = compare
        self._views: tuple[Confirmations, Screens] | None = None

    @property
    def history(self) -> list[Trial]:
        return self._store.history

    def find(self, key: TrialKey) -> Trial | None:
        return self._store.find(key)

    def record(self, trial: Trial) -> None:
        self._store.append(trial)
        self._views = None

    @property
    def confirmations(self) -> Confirmations:
        return self._seen()[0]

    @property
    def screens(self) -> Screens:
        return self._seen()[1]

    def _seen(self) -> tuple[Confirmations, Screens]:
        """What the history says, made anew only when it has grown."""
        if self._views is None:
            settings, history = self.settings, self._store.history
            self._views = (
                Confirmations(history, settings.total, settings.seeds),
                Screens(history, settings.total, settings.screen_rung, settings.screen_seed),
            )
        return self._views

    def question(self, delta: float, evaluations: int = 0) -> SearchProblem:
        """What a strategy is asked for this delta (points), with so many sets to screen in all."""
        settings, confirmations = self.settings, self.confirmations
        return SearchProblem(
            total=settings.total,
            tolerance=self.screens.tolerance(delta),
            fixed=settings.fixed | settings.limits.keep,
            limits=settings.limits,
            similarities=settings.similarities,
            sampler=settings.sampler,
            seed=settings.screen_seed,
            width=settings.width,
            evaluations=evaluations,
            deltas=tuple(sorted(settings.deltas, reverse=True)),
            in_full=confirmations.in_full,
            seed_sd=confirmations.seed_sd,
            seeds=len(settings.seeds),
        )

    def expected_losses(self, sets: Sequence[LayerSet]) -> list[float]:
        """Points that sets are expected to lose in full, by all that was measured; by what is usual before that."""
        if not sets:
            return []
        expected, _ = self.question(0.0).surrogate(self.screens.judged).expect(sets)
        return [float(lost) for lost in expected]

    # -- the candidates of a delta, in the order in which they were written down ------------------------------------

    def candidates(self, delta: float) -> list[LayerSet]:
        """The sets chosen to be confirmed for this delta, before they were: a plan that a resumed search keeps to."""
        return [
            LayerSet.parse(text, self.settings.total)
            for text in self._store.facts.get(self._name("candidates", delta), [])
        ]

    def add_candidate(self, layers: LayerSet, delta: float) -> None:
        known = self.candidates(delta)
        if layers not in known:
            names = [candidate.compact for candidate in (*known, layers)]
            self._store.set_facts(**{self._name("candidates", delta): names})

    def is_closed(self, delta: float) -> bool:
        """Whether a search has answered this delta; what other deltas show later does not open it again."""
        return bool(self._store.facts.get(self._name("answered", delta)))

    def close(self, delta: float) -> None:
        if not self.settings.named:
            self._store.set_facts(**{self._name("answered", delta): True})

    def _name(self, what: str, delta: float) -> str:
        """Another question to the same study makes a plan of its own."""
        settings = self.settings
        seeds = f"{len(settings.seeds)} seeds from {settings.seeds[0]}"
        words = [settings.criterion, settings.strategy, seeds]
        if settings.limits.given:
            words.append(settings.limits.compact)
        # As little as makes a difference: studies of before these were told apart keep their plans.
        if settings.strategy == "optuna" and settings.sampler != USUAL_SAMPLER:
            words.append(settings.sampler)
        if settings.criterion == "certified" and settings.confidence != USUAL_CONFIDENCE:
            words.append(f"confidence {settings.confidence:g}")
        if settings.start:
            words.append(f"from {' '.join(layers.compact for layers in settings.start)}")
        return f"{what} for {delta:g} points, {', '.join(words)}"

    # -- answers ------------------------------------------------------------------------------------------------

    def answers(self, deltas: Iterable[float] | None = None) -> dict[float, LayerSet]:
        """Per delta (those of the plan, unless given) the smallest set confirmed so far, of equals the one that lost
        less; else the full model."""
        return {delta: self.answer(delta) for delta in (self.settings.deltas if deltas is None else deltas)}

    def answer(self, delta: float) -> LayerSet:
        confirmations, settings = self.confirmations, self.settings
        eligible = [layers for layers in confirmations.sets if not settings.named or layers in settings.named]
        holding = [layers for layers in eligible if settings.limits.allow(layers) and self.holds(layers, delta)]
        return min(
            holding,
            key=lambda layers: (layers.depth, statistics.fmean(confirmations.lost(layers))),
            default=confirmations.full,
        )

    def holds(self, layers: LayerSet, delta: float) -> bool:
        """Whether a confirmed set is within delta (points), by the criterion."""
        judgement = self.judge(layers, delta)
        if self.settings.criterion == "certified":
            return judgement.certified(delta)
        return judgement.degradation <= delta

    def may_lose(self, delta: float) -> float:
        """Points a set may lose in the mean and hold, about: certified, its upper bound must stay within delta."""
        if self.settings.criterion == "observed":
            return delta
        strictness = NormalDist().inv_cdf(self.settings.confidence) / NormalDist().inv_cdf(USUAL_CONFIDENCE)
        return delta - 2.0 * strictness * self.confirmations.seed_sd * math.sqrt(2 / len(self.settings.seeds))

    def judge(self, layers: LayerSet, delta: float) -> Judgement:
        """A confirmed set against the baseline, at its share of the delta's confidence.

        The error is split among the candidates in the order in which they were written down, then those confirmed for
        other deltas.
        """
        if self.settings.named:
            share = 1 / len(set(self.settings.named))
        else:
            planned = self.candidates(delta)
            others = sorted(other for other in self.confirmations.sets if other not in planned)
            share = share_of_error([*planned, *others].index(layers))
        judgement = self._compare(layers, 1 - (1 - self.settings.confidence) * share)
        confirmations = self.confirmations
        collapsed = confirmations.collapsed(layers) + confirmations.collapsed(confirmations.full)
        return replace(judgement, collapsed=collapsed)
