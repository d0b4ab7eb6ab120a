"""The loop and nothing else: resume, propose, skip what is known, evaluate, record, stop, confirm, choose.

Decides without torch. What is measured comes through ``run_jobs``, what is known is in the study's findings. Whoever is
free is given the next job, which is decided by what has been found and what is running alone: an interrupted search
goes on as if nothing had happened.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from budget_search.core.errors import BudgetSearchError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, Trial, TrialKey
from budget_search.layer_search.acquisition import ConfirmationRule, choose
from budget_search.layer_search.budget import RemainingBudget
from budget_search.layer_search.settings import SearchObserver
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.strategies import propose
from budget_search.layer_search.strategies.problem import unmeasured

# Candidates confirmed for one delta at the most, and of one depth.
CANDIDATES_PER_DELTA = 5
CANDIDATES_PER_DEPTH = 2


class OutOfBudget(Exception):  # noqa: N818 - a turn of events, not an error
    """The search budget does not allow the next evaluations."""


class Search:
    """One question put to one study.

    ``run_jobs`` takes a job whenever it can run one and yields trials in any order; a job that is None says that the
    next depends on trials still to come.
    """

    def __init__(
        self,
        state: SearchState,
        run_jobs: Callable[[Iterable[Job | None]], Iterator[Trial]],
        observer: SearchObserver,
    ) -> None:
        self.state = state
        self.settings = state.settings
        self._run_jobs = run_jobs
        self._observer = observer
        self._budget = RemainingBudget(
            self.settings.budget, len(self.settings.seeds), self.settings.width, self.settings.recipe
        )
        self._running: dict[Job, Trial | None] = {}
        self._proposed: list[Job] = []
        self._named = deque(self.settings.named)
        self._baseline_stands = False
        self._answered: set[float] = set()
        self._told: set[str] = set()
        self.fine_tuned = 0
        self.ended_early = False

    def run(self) -> dict[float, LayerSet]:
        """Answer every delta: the smallest confirmed layer set, the full model where none holds.

        Records what comes as it comes. Raises BudgetSearchError when the baseline cannot be measured or an evaluation
        fails twice for the machine's reasons.
        """
        for trial in self._run_jobs(self._jobs()):
            self.state.record(trial)
            self.fine_tuned += not trial.machine_failure
            self._observer.finished(trial)
        return self.state.answers()

    def _jobs(self) -> Iterator[Job | None]:
        """A job for whoever is free; None while the next depends on those that are running. What fails for the
        machine's reasons is run once more."""
        failed: list[Job] = []
        retried: set[Job] = set()
        over = False
        while True:
            # Of what is run once more, the history holds the failure until the new trial has come.
            came = [job for job, earlier in self._running.items() if self.state.find(job.key) is not earlier]
            for done in came:
                del self._running[done]
            failed += self._unknown(came)
            job = self._once_more(failed, retried)
            if job is None and not over:
                try:
                    job = self._next_job()
                except OutOfBudget:
                    # Beside what is running; that may well leave enough when it has come.
                    over = not self._running
                    self.ended_early |= over
            if job is None and not self._running:
                return
            if job is not None:
                self._running[job] = self.state.find(job.key)
                self._observer.started(job)
            yield job

    def _once_more(self, failed: list[Job], retried: set[Job]) -> Job | None:
        if not failed:
            return None
        job = failed.pop(0)
        if job in retried:
            trial = self.state.find(job.key)
            raise BudgetSearchError(
                f"an evaluation failed twice for the machine's reasons ({trial.error if trial else 'it never came'}): "
                f"{job.key}; free memory, or try --workers 1 or a smaller --batch-size or --max-length, then run the "
                "same command again"
            )
        retried.add(job)
        self._observer.stage(f"once more, for it failed for the machine's reasons: layers {job.key.layers}")
        return job

    def _next_job(self) -> Job | None:
        """The first of: the baseline's runs, then per delta its screens and the runs of its next candidate.

        While runs of a candidate are under way and somebody is free, the search goes on as if they turned out as
        expected; a delta is answered when nothing of it is running any more. Where smaller models build on the full
        one, they wait for its runs. None: nothing to do before something comes.
        """
        full = LayerSet.full(self.settings.total)
        if baseline := self._to_start(full):
            self._stage(f"baseline: all {full.total} layers, {len(self.settings.seeds)} seeds")
            return baseline[0]
        if self.settings.builds_on_full and any(job.key.layers.is_full for job in self._running):
            return None
        if not self._baseline_stands:
            self._check_baseline()
        if self.settings.named:
            return self._next_named()
        first = True
        for position, delta in enumerate(sorted(self.settings.deltas, reverse=True)):
            if delta in self._answered:
                continue
            self._stage(f"searching for the fewest layers within {delta:g} points")
            if not self.state.is_closed(delta):
                job = self._next_screen(delta, position)
                if job is None and not self._awaits_screens:
                    job = self._next_confirmation(delta)
                if job is not None or self._awaits_screens:
                    return job
            first = first and not any(job.key.layers in self.state.candidates(delta) for job in self._running)
            if first:
                self._answer(delta)
        return None

    def _next_named(self) -> Job | None:
        self._stage("measuring the named layer sets")
        while self._named:
            if runs := self._to_start(self._named[0]):
                self._afford(runs)
                return runs[0]
            self._named.popleft()
        if not self._running:
            for delta in sorted(set(self.settings.deltas) - self._answered, reverse=True):
                self._answer(delta)
        return None

    def _answer(self, delta: float) -> None:
        self._answered.add(delta)
        if not self.ended_early:
            self.state.close(delta)
        self._observer.answered(delta, self.state.answer(delta))

    def _check_baseline(self) -> None:
        """Raises BudgetSearchError when nothing can be compared with the full model."""
        confirmations = self.state.confirmations
        if failed := confirmations.failed(confirmations.full):
            raise BudgetSearchError(
                f"the full model could not be fine-tuned ({failed.error}): nothing can be compared with it; "
                "try a lower --lr or --precision fp32"
            )
        collapsed = confirmations.collapsed(confirmations.full)
        if 2 * collapsed > len(self.settings.seeds):
            raise BudgetSearchError(
                f"the full model learnt nothing: with {collapsed} of {len(self.settings.seeds)} seeds it predicts a "
                "single class, and nothing compares with that; give it more --epochs or --train-examples, or another "
                "--lr"
            )
        self._baseline_stands = confirmations.is_complete(confirmations.full)

    # -- screens ------------------------------------------------------------------------------------------------

    @property
    def _awaits_screens(self) -> bool:
        """Confirmations are chosen when every screen and the whole baseline have come."""
        return any(job.split == "selection" or job.key.layers.is_full for job in self._running)

    def _next_screen(self, delta: float, position: int) -> Job | None:
        """What the strategy proposes until it has finished, so many sets are screened, or no more can be afforded: what
        a confirmation takes is held back, for this delta and for each that is still to come."""
        if not self._proposed:
            confirmations = sum(other <= delta for other in self.settings.deltas)
            allowed = self._budget.fine_tunes(self.state.history, self._running, self.settings.total, confirmations)
            if allowed <= 0:
                self.ended_early |= not self._running
                return None
            wanted = self._wanted_screens(delta, position)
            wanted = wanted[: int(min(allowed, len(wanted)))]
            self._afford(wanted)
            self._proposed = wanted
        return self._proposed.pop(0) if self._proposed else None

    def _wanted_screens(self, delta: float, position: int) -> list[Job]:
        """What to screen beside what is running; empty when finished, or until that has come."""
        screens = self.state.screens
        wanted = [self._screen(layers, rung) for layers, rung in screens.doubtful()]
        if wanted:
            return self._startable(wanted)
        if screens.rung not in screens.tolerance(delta).baselines:
            raise BudgetSearchError(
                "the full model could not be fine-tuned for a screen; try a lower --lr or --precision fp32"
            )
        screening = sum(job.split == "selection" for job in self._running)
        evaluations = self.settings.evaluations_until(position, screens.rung)
        question = self.state.question(delta, evaluations - screening)
        inherited = [
            self._screen(layers, screens.rung) for layers in unmeasured(self.settings.start, screens.judged, question)
        ]
        if startable := self._startable(inherited):
            return startable[: self.settings.width]
        proposed = propose(self.settings.strategy, screens.judged, question)
        return self._startable(self._screen(layers, screens.rung) for layers in proposed)

    # -- confirmations ------------------------------------------------------------------------------------------

    def _next_confirmation(self, delta: float) -> Job | None:
        """A run of the next candidate, which is written down before: a plan that a resumed search finds and keeps to.

        None is begun that the search budget will not see to its end.
        """
        candidate = self._most_promising(delta)
        if candidate is None:
            return None
        runs = self._to_start(candidate)
        try:
            self._afford(runs)
        except OutOfBudget:
            if self._running:
                raise
            # A smaller delta may find what this one can not afford among what was confirmed already.
            self.ended_early = True
            return None
        self.state.add_candidate(candidate, delta)
        self._stage(f"confirming layers {candidate} for {delta:g} points")
        return runs[0]

    def _most_promising(self, delta: float) -> LayerSet | None:
        """By the surrogate, of the sets with fewer layers than the answer so far: of those that were screened, or,
        where the strategy is free to choose, of all; with so many tries, what was begun beside them."""
        planned = self.state.candidates(delta)
        tries = self._tries(delta, planned)
        question, judged = self.state.question(delta), self.state.screens.judged
        # The surrogate knows nothing of what breaks; so below all that has not broken, one layer at a time.
        fewest = self.state.screens.fewest_alive - 1
        screened = [trial.layers for trial in judged if trial.state != "failed" and not trial.layers.is_full]
        depth = self._expected_depth(delta)
        tried = [layers.depth for layers in planned]
        pool = [
            layers
            for layers in (question.sets(screened) if self.settings.strategy == "auto" else screened)
            if fewest <= layers.depth < depth
            and question.allows(layers)
            and self._is_open(layers, delta)
            and (layers in planned or (tries and tried.count(layers.depth) < CANDIDATES_PER_DEPTH))
        ]
        if not pool:
            return None
        confirming = ConfirmationRule(self.state.may_lose(delta), question.seed_sd, question.seeds, question.in_full)
        return choose(question.surrogate(judged), pool, confirming, depth, max(1, tries))

    def _tries(self, delta: float, planned: Sequence[LayerSet]) -> int:
        """How many more sets may be tried for this delta: one in any case, further ones while the search budget leaves
        one to each of the smaller deltas. What holds for them holds for this one."""
        smaller = sum(other < delta for other in self.settings.deltas)
        allowed = self._budget.confirmations(self.state.history, self._running, self.settings.total) - smaller
        left = min(CANDIDATES_PER_DELTA - len(planned), allowed)
        return max(math.floor(left), 0 if planned else 1)

    def _expected_depth(self, delta: float) -> int:
        """Layers of the answer, if the sets whose last runs are under way turn out as expected."""
        confirming = {job.key.layers for job in self._running if job.split == "certification"}
        awaited = [layers for layers in confirming if not self._to_start(layers) and self.settings.limits.allow(layers)]
        losses = zip(awaited, self.state.expected_losses(awaited), strict=True)
        expected = [layers.depth for layers, lost in losses if lost <= self.state.may_lose(delta)]
        return min([self.state.answer(delta).depth, *expected])

    def _is_open(self, layers: LayerSet, delta: float) -> bool:
        """Whether another run of this set can still tell something."""
        confirmations = self.state.confirmations
        return (
            not confirmations.is_complete(layers)
            and not confirmations.hopeless(layers, delta)
            and bool(self._to_start(layers))
        )

    # -- evaluations --------------------------------------------------------------------------------------------

    def _screen(self, layers: LayerSet, rung: float) -> Job:
        # Smaller models may be cut out of the full one.
        keep_weights = layers.is_full and self.settings.recipe.dropping == "untrained"
        return Job(TrialKey(layers, rung, self.settings.screen_seed), "selection", keep_weights)

    def _to_start(self, layers: LayerSet) -> list[Job]:
        """The runs of the full recipe that confirm a set, as far as they are neither known nor under way."""
        keys = (TrialKey(layers, FULL_RUNG, seed) for seed in self.settings.seeds)
        return self._startable(Job(key, "certification", keep_weights=True) for key in keys)

    def _startable(self, jobs: Iterable[Job]) -> list[Job]:
        return [job for job in self._unknown(jobs) if job not in self._running]

    def _unknown(self, jobs: Iterable[Job]) -> list[Job]:
        known = {job: self.state.find(job.key) for job in jobs}
        return [job for job, trial in known.items() if trial is None or trial.machine_failure]

    def _afford(self, jobs: Sequence[Job]) -> None:
        """Raises OutOfBudget where these will not be finished within the search budget."""
        if not self._budget.covers(jobs, self.state.history, self._running):
            raise OutOfBudget

    def _stage(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._observer.stage(text)

    def notes(self) -> list[str]:
        """Sentences for the report on how the search went."""
        screens, confirmations = self.state.screens, self.state.confirmations
        notes = []
        if self.ended_early:
            notes.append("The search budget (--max-trials, --max-hours) ended the search before it was finished.")
        if collapsed := confirmations.collapsed(confirmations.full):
            notes.append(
                f"The full model predicted a single class with {collapsed} of {len(self.settings.seeds)} seeds. That "
                "flatters smaller sets, which are compared with its mean; nothing is certified."
            )
        if not self.settings.named:
            notes.append(
                f"Screens were fine-tunes of {screens.rung:.3g} of the recipe with one seed, scored on selection; "
                "no answer rests on them."
            )
            if screens.rung > self.settings.screen_rung:
                notes.append(
                    f"Screens of {self.settings.screen_rung:.3g} of the recipe ranked layer sets otherwise than runs "
                    "twice as long, or taught the full model nothing: they were lengthened."
                )
        return notes
