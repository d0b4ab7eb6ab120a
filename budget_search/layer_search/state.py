"""The state of a search: the trials of a study, the plan recorded in it, and the answers that follow from both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import NormalDist

from budget_search.core.layers import LayerSet
from budget_search.core.limits import BindingLimit, Loss
from budget_search.core.trial import Trial, TrialKey
from budget_search.layer_search.acceptance import SELECTION_BIAS, AcceptanceRule, Estimate, shrink
from budget_search.layer_search.acquisition import ConfirmationRule, candidate_sets
from budget_search.layer_search.confirmation import Confirmations
from budget_search.layer_search.learning import Gain
from budget_search.layer_search.screening import Screens
from budget_search.layer_search.settings import History, SearchSettings
from budget_search.layer_search.strategies.problem import SearchProblem
from budget_search.layer_search.verdict import Judgement, expected_seed_sd, share_of_error, share_of_look

DEFAULT_SAMPLER, DEFAULT_CONFIDENCE, DEFAULT_PROBABILITY = "tpe", 0.95, 0.8


class SearchState:
    """One study, seen with the settings of one search; it grows with every recorded trial.

    ``compare(layers, confidence)`` compares a set that has all its confirmations with the baseline; ``gain()`` compares
    the baseline, once it is complete, with the best constant prediction (None where that is unknown).
    """

    def __init__(
        self,
        settings: SearchSettings,
        store: History,
        compare: Callable[[LayerSet, float], Judgement],
        gain: Callable[[], Gain | None] | None = None,
    ) -> None:
        self.settings = settings
        self._store = store
        self._compare = compare
        self._gain = gain
        self.acceptance = AcceptanceRule(settings.criterion, settings.probability)
        self._known_gain: Gain | None = None
        self._views: tuple[Confirmations, Screens] | None = None
        self._estimates: dict[LayerSet, Estimate] = {}

    @property
    def history(self) -> list[Trial]:
        return self._store.history

    def find(self, key: TrialKey) -> Trial | None:
        return self._store.find(key)

    def record(self, trial: Trial) -> None:
        self._store.append(trial)
        self._views = None
        self._estimates = {}

    @property
    def confirmations(self) -> Confirmations:
        return self._current_views()[0]

    @property
    def screens(self) -> Screens:
        return self._current_views()[1]

    def _current_views(self) -> tuple[Confirmations, Screens]:
        """The two views of the history, rebuilt after every recorded trial."""
        if self._views is None:
            settings, history = self.settings, self._store.history
            self._views = (
                Confirmations(history, settings.total, settings.seeds, settings.further_seeds),
                Screens(history, settings.total, settings.screen_rung, settings.screen_seed),
            )
        return self._views

    def problem(self, delta: float, evaluations: int = 0) -> SearchProblem:
        """The problem that a strategy solves for this delta (points), with ``evaluations`` screens in total."""
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
            full_runs=confirmations.full_runs,
            seed_sd=confirmations.seed_sd,
            seeds=len(settings.seeds),
        )

    def expected_degradations(self, sets: Sequence[LayerSet]) -> list[float]:
        """The degradations, in points, that the surrogate predicts for full runs of these sets."""
        if not sets:
            return []
        expected, _ = self.problem(0.0).surrogate(self.screens.trials).predict(sets)
        return [float(degradation) for degradation in expected]

    def expected_to_hold(self, sets: Sequence[LayerSet], delta: float) -> list[LayerSet]:
        """Those of these sets whose full runs, by the surrogate, will hold for this delta (points)."""
        if not sets:
            return []
        mean, sd = self.problem(0.0).surrogate(self.screens.trials).predict(sets)
        required = self.confirmation_rule(delta).required_means(mean, sd)
        return [layers for layers, expected, most in zip(sets, mean, required, strict=True) if expected <= most]

    # -- the recorded plan --------------------------------------------------------------------------------------

    def candidates(self, delta: float) -> list[LayerSet]:
        """The sets chosen for confirmation for this delta, in the order in which they were chosen.

        They are recorded before their first run, so that a resumed search continues with the same ones.
        """
        return [
            LayerSet.parse(text, self.settings.total)
            for text in self._store.facts.get(self._fact_name("candidates", delta), [])
        ]

    def add_candidate(self, layers: LayerSet, delta: float) -> None:
        known = self.candidates(delta)
        if layers not in known:
            names = [candidate.compact for candidate in (*known, layers)]
            self._store.set_facts(**{self._fact_name("candidates", delta): names})

    def is_answered(self, delta: float) -> bool:
        """Whether a search has finished with this delta, and later trials have not withdrawn its answer."""
        recorded = self._store.facts.get(self._fact_name("answered", delta))
        return bool(recorded) and not self.is_withdrawn(delta)

    def is_withdrawn(self, delta: float) -> bool:
        """Whether later trials withdrew the recorded answer for a larger set.

        Every trial changes the estimates of all sets, so a set that was accepted may not be any more. Unknown for an
        answer of an earlier version, which recorded only that there was one.
        """
        recorded = self._store.facts.get(self._fact_name("answered", delta))
        return (
            isinstance(recorded, str) and self.answer(delta).depth > LayerSet.parse(recorded, self.settings.total).depth
        )

    def mark_answered(self, delta: float) -> None:
        if not self.settings.named:
            self._store.set_facts(**{self._fact_name("answered", delta): self.answer(delta).compact})

    def _fact_name(self, prefix: str, delta: float) -> str:
        """The name of a fact in the study. Searches with other settings have other names, so each has its own plan."""
        settings = self.settings
        seeds = f"{len(settings.seeds)} seeds from {settings.seeds[0]}"
        parts = [settings.criterion, settings.strategy, seeds]
        if settings.limits.given:
            parts.append(settings.limits.compact)
        # Defaults are left out: studies older than these settings keep their plans.
        if settings.strategy == "optuna" and settings.sampler != DEFAULT_SAMPLER:
            parts.append(settings.sampler)
        if settings.criterion == "certified" and settings.confidence != DEFAULT_CONFIDENCE:
            parts.append(f"confidence {settings.confidence:g}")
        if settings.criterion == "likely" and settings.probability != DEFAULT_PROBABILITY:
            parts.append(f"probability {settings.probability:g}")
        if settings.start:
            parts.append(f"from {' '.join(layers.compact for layers in settings.start)}")
        return f"{prefix} for {delta:g} points, {', '.join(parts)}"

    # -- answers ------------------------------------------------------------------------------------------------

    def answers(self, deltas: Iterable[float] | None = None) -> dict[float, LayerSet]:
        """The answer to each delta in points, by default to those of the settings."""
        return {delta: self.answer(delta) for delta in (self.settings.deltas if deltas is None else deltas)}

    def answer(self, delta: float) -> LayerSet:
        """The smallest confirmed set that holds; among equals the one with the lowest degradation, else all layers."""
        confirmations, settings = self.confirmations, self.settings
        eligible = [layers for layers in confirmations.sets if not settings.named or layers in settings.named]
        holding = [layers for layers in eligible if settings.limits.allow(layers) and self.holds(layers, delta)]
        return min(
            holding,
            key=lambda layers: (layers.depth, statistics.fmean(confirmations.degradations(layers))),
            default=confirmations.full,
        )

    def holds(self, layers: LayerSet, delta: float) -> bool:
        """Whether a confirmed set is accepted for delta (points), by the criterion."""
        return self.acceptance.accepts(delta, self.judge(layers, delta), lambda: self.estimate(layers))

    def estimate(self, layers: LayerSet) -> Estimate:
        """The degradation of a confirmed set: its runs, shrunk towards what the surrogate predicts from all others.

        The variance between seeds is pooled over all confirmed sets, with a prior, so one seed has an estimate too.
        """
        if layers not in self._estimates:
            confirmations = self.confirmations
            judgement = self._compare(layers, self.settings.confidence)
            sets = (confirmations.full, *confirmations.uncollapsed)
            seed_sd = expected_seed_sd(*(list(confirmations.scores(each).values()) for each in sets))
            variance = 2 * seed_sd**2 / judgement.seeds + judgement.example_variance
            mean, sd = self.problem(0.0).surrogate(self.screens.trials, without=layers).predict([layers])
            expected = float(mean[0]) + SELECTION_BIAS * float(sd[0])
            self._estimates[layers] = shrink(judgement.degradation, variance, expected, float(sd[0]))
        return self._estimates[layers]

    def confirmation_rule(self, delta: float) -> ConfirmationRule:
        """When a set is expected to hold for this delta (points).

        Under criterion ``certified`` its mean must be below delta by about the width of the confidence bound.
        """
        settings, confirmations = self.settings, self.confirmations
        seeds = len(settings.seeds)
        if settings.criterion == "certified":
            strictness = NormalDist().inv_cdf(settings.confidence) / NormalDist().inv_cdf(DEFAULT_CONFIDENCE)
            delta -= 2.0 * strictness * confirmations.seed_sd * math.sqrt(2 / seeds)
        variances = [self._compare(layers, settings.confidence).example_variance for layers in confirmations.sets]
        return ConfirmationRule(
            delta,
            confirmations.seed_sd,
            seeds,
            confirmations.full_runs,
            self.acceptance,
            statistics.fmean(variances) if variances else 0.0,
            settings.recipe,
        )

    def gain(self) -> Gain | None:
        """What the baseline has learnt beyond the best constant prediction; None where that is unknown."""
        if self._known_gain is None and self._gain and self.confirmations.is_complete(self.confirmations.full):
            self._known_gain = self._gain()
        return self._known_gain

    def judge(self, layers: LayerSet, delta: float) -> Judgement:
        """Compare a confirmed set with the baseline, at its share of the error allowed for this delta."""
        confirmations = self.confirmations
        looks = len(confirmations.seeds_of(layers)) - len(self.settings.seeds)
        judgement = self._compare(layers, self.confidence_of(layers, delta, looks))
        collapsed = confirmations.collapsed(layers) + len(self.failed_baseline_seeds())
        return replace(judgement, collapsed=collapsed)

    def confidence_of(self, layers: LayerSet, delta: float, further_seeds: int) -> float:
        """The level of the bound of a confirmed set that has so many further seeds.

        The candidates for this delta share the error in the order in which they were chosen. Sets confirmed for other
        deltas follow. The looks at one candidate share what it gets.
        """
        if self.settings.named:
            share = 1 / len(set(self.settings.named))
        else:
            planned = self.candidates(delta)
            others = sorted(other for other in self.confirmations.sets if other not in planned)
            share = share_of_error([*planned, *others].index(layers))
        return 1 - (1 - self.settings.confidence) * share * share_of_look(further_seeds, self.settings.certify)

    def failed_baseline_seeds(self) -> list[int]:
        """The seeds with which the full model predicts a single class, or is no better than a constant prediction."""
        runs, gain = self.confirmations.runs(self.confirmations.full), self.gain()
        failed = {trial.key.seed for trial in runs if trial.state == "collapsed"}
        if gain:
            failed |= {self.settings.seeds[position] for position in gain.failed}
        return sorted(failed)

    # -- what the limits cost -----------------------------------------------------------------------------------

    def binding_limit(self, delta: float) -> BindingLimit | None:
        """Why no set within the limits holds for delta (points); None if one holds or there are no limits.

        The surrogate predicts the degradation of sets without confirmations; those are marked as expected.
        """
        limits, total = self.settings.limits, self.settings.total
        if not limits.given or not self.answer(delta).is_full:
            return None
        measured = [*(trial.layers for trial in self.screens.trials), *self.confirmations.started]
        sets = [layers for layers in candidate_sets(total, self.settings.fixed, measured) if not layers.is_full]
        within = self._best_within([layers for layers in sets if limits.allow(layers)])
        beyond = self._smallest_beyond([layers for layers in sets if not limits.allow(layers)], delta)
        breaches = () if beyond is None else limits.breaches(LayerSet(beyond.kept, total))
        return BindingLimit(within, beyond, breaches)

    def _best_within(self, sets: Sequence[LayerSet]) -> Loss | None:
        """The set within the limits with the lowest degradation: of the confirmed ones, or else of all."""
        measured = list(filter(self.settings.limits.allow, self.confirmations.sets))
        losses = [self._confirmed_loss(layers) for layers in measured] or self._expected_losses(sets)
        return min(losses, key=lambda loss: (loss.degradation, loss.kept), default=None)

    def _smallest_beyond(self, sets: Sequence[LayerSet], delta: float) -> Loss | None:
        """The smallest of these sets, all outside the limits, that holds or else is expected to hold."""
        outside = set(sets)
        holding = [layers for layers in self.confirmations.sets if layers in outside and self.holds(layers, delta)]
        losses = [self._confirmed_loss(layers) for layers in holding] or [
            loss for loss in self._expected_losses(sets) if loss.degradation <= delta
        ]
        return min(losses, key=lambda loss: (loss.depth, loss.degradation, loss.kept), default=None)

    def _confirmed_loss(self, layers: LayerSet) -> Loss:
        degradation = statistics.fmean(self.confirmations.degradations(layers))
        return Loss(layers.kept, layers.depth, degradation, "confirmation")

    def _expected_losses(self, sets: Sequence[LayerSet]) -> list[Loss]:
        if not self.screens.trials:
            return []
        pairs = zip(sets, self.expected_degradations(sets), strict=True)
        return [Loss(layers.kept, layers.depth, degradation, "expected") for layers, degradation in pairs]
