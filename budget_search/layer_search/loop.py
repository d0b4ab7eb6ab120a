"""The search loop: baseline, screens, confirmations, answers.

``run_jobs`` runs the evaluations, the study keeps the trials. The next job depends only on the recorded trials and the
running jobs, so an interrupted search resumes where it stopped.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from threadpoolctl import ThreadpoolController

from budget_search.core.dropping import starts_from_full
from budget_search.core.errors import BudgetSearchError
from budget_search.core.formatting import tolerance
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, Trial, TrialKey
from budget_search.layer_search.acquisition import choose
from budget_search.layer_search.budget import RemainingBudget
from budget_search.layer_search.certification import wanted_runs
from budget_search.layer_search.learning import why_not_learnt
from budget_search.layer_search.notes import notes
from budget_search.layer_search.pool import Pool
from budget_search.layer_search.settings import SearchObserver
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.strategies import propose
from budget_search.layer_search.strategies.problem import unmeasured

# The most candidates that are confirmed for one delta, and for one delta at one depth.
CANDIDATES_PER_DELTA = 5
CANDIDATES_PER_DEPTH = 2


class OutOfBudget(Exception):  # noqa: N818 - a signal, not an error
    """The search budget does not allow the next evaluations."""


class Search:
    """One search in one study.

    ``run_jobs`` takes the next job whenever a worker is free and yields finished trials in any order. A job of None
    means that the next job depends on trials that are still running.
    """

    def __init__(
        self,
        state: SearchState,
        run_jobs: Callable[[Iterable[Job | None]], Iterator[Trial]],
        observer: SearchObserver,
    ) -> None:
        self.state = state
        settings = self.settings = state.settings
        self._run_jobs = run_jobs
        self._observer = observer
        self._budget = RemainingBudget(settings.budget, len(settings.seeds), settings.width, settings.recipe)
        self._running: dict[Job, Trial | None] = {}
        self._proposed: list[Job] = []
        self._named = deque(settings.named)
        self._baseline_checked = False
        self._answered: dict[float, LayerSet] = {}
        self._stages: set[str] = set()
        self._libraries = ThreadpoolController()
        self.fine_tuned = 0
        self.ended_early = False

    def run(self) -> dict[float, LayerSet]:
        """Find the smallest confirmed layer set for every delta, or the full model if no smaller one holds.

        Every trial is recorded as soon as it is finished. Raises BudgetSearchError if the baseline cannot be measured
        or the machine makes the same evaluation fail twice.
        """
        for trial in self._run_jobs(self._jobs()):
            self.state.record(trial)
            self.fine_tuned += not trial.machine_failure
            self._observer.finished(trial)
        return self.state.answers()

    def _jobs(self) -> Iterator[Job | None]:
        """The jobs in order; None while the next depends on running jobs. Machine failures are retried once."""
        failed: list[Job] = []
        retried: set[Job] = set()
        out_of_budget = False
        while True:
            # While a retry runs, the history still holds the failed trial.
            finished = [job for job, earlier in self._running.items() if self.state.find(job.key) is not earlier]
            for done in finished:
                del self._running[done]
            failed += self._missing(finished)
            job = self._retry(failed, retried)
            if job is None and not out_of_budget:
                try:
                    # Decisions use small matrices; BLAS threads that wait for each other take cores from the workers.
                    with self._libraries.limit(limits=1, user_api="blas"):
                        job = self._next_job()
                except OutOfBudget:
                    # The running jobs may take less than predicted and leave enough.
                    out_of_budget = not self._running
                    self.ended_early |= out_of_budget
            if job is None and not self._running:
                return
            if job is not None:
                self._running[job] = self.state.find(job.key)
                self._observer.started(job)
            yield job

    def _retry(self, failed: list[Job], retried: set[Job]) -> Job | None:
        if not failed:
            return None
        job = failed.pop(0)
        if job in retried:
            trial = self.state.find(job.key)
            raise BudgetSearchError(
                f"{job.key} failed twice because of the machine ({trial.error if trial else 'no result'}); "
                f"{self.settings.advice.machine_failed}"
            )
        retried.add(job)
        self._observer.stage(f"retrying after a failure of the machine: layers {job.key.layers}")
        return job

    def _next_job(self) -> Job | None:
        """The next run of the baseline, or for each delta in turn a screen or a run of its next candidate.

        If a worker is free while the last runs of a candidate are running, the search continues as if they turned out
        as expected. A delta is answered when none of its candidates is running any more. None: there is no job until a
        trial finishes.
        """
        full = LayerSet.full(self.settings.total)
        if baseline := self._runs_to_start(full):
            self._stage(f"baseline: all {full.total} layers, {len(self.settings.seeds)} seeds")
            return baseline[0]
        if not self._baseline_checked:
            self._check_baseline()
        if self.settings.named:
            return self._next_named()
        all_earlier_answered = True
        for position, delta in enumerate(sorted(self.settings.deltas, reverse=True)):
            if self._is_finished(delta):
                continue
            self._stage(f"searching for the fewest layers within {tolerance(delta / 100)}")
            if not self.state.is_answered(delta):
                job = self._next_screen(delta, position)
                if job is None and not self._waits_for_screens:
                    job = self._next_confirmation(delta)
                if job is not None or self._waits_for_screens:
                    return job
            running = any(job.key.layers in self.state.candidates(delta) for job in self._running)
            all_earlier_answered = all_earlier_answered and not running
            if all_earlier_answered:
                self._answer(delta)
        return self._next_further_run()

    def _next_further_run(self) -> Job | None:
        """A run with a further seed for an answer that is not certified yet; only when all deltas are answered."""
        waits = self.settings.waits_for_full("certification", self._running)
        if waits or not all(map(self._is_finished, self.settings.deltas)):
            return None
        for delta in sorted(self.settings.deltas, reverse=True):
            keys = wanted_runs(self.state, delta)
            if runs := self._startable(Job(key, "certification", keep_weights=True) for key in keys):
                self._require_budget(runs)
                self._stage(f"more seeds for layers {keys[-1].layers}, to certify them for {tolerance(delta / 100)}")
                return runs[0]
        return None

    def _next_named(self) -> Job | None:
        self._stage("measuring the named layer sets")
        while self._named and not self.settings.waits_for_full("certification", self._running):
            if runs := self._runs_to_start(self._named[0]):
                self._require_budget(runs)
                return runs[0]
            self._named.popleft()
        if not self._running:
            for delta in sorted(self.settings.deltas, reverse=True):
                if not self._is_finished(delta):
                    self._answer(delta)
        return self._next_further_run()

    def _answer(self, delta: float) -> None:
        answer = self._answered[delta] = self.state.answer(delta)
        if not self.ended_early:
            self.state.mark_answered(delta)
        self._observer.answered(delta, answer)

    def _is_finished(self, delta: float) -> bool:
        """Whether this delta was answered; it is reopened if later trials withdraw the answer for a larger set."""
        return delta in self._answered and self.state.answer(delta).depth <= self._answered[delta].depth

    def _check_baseline(self) -> None:
        """Raises BudgetSearchError if the full model failed or collapsed, so that nothing can be compared with it."""
        confirmations = self.state.confirmations
        if failed := confirmations.failed_run(confirmations.full):
            raise BudgetSearchError(
                f"the full model could not be fine-tuned ({failed.error}): nothing can be compared with it; "
                f"{self.settings.advice.not_trainable}"
            )
        self._baseline_checked = confirmations.is_complete(confirmations.full)
        reason = self._baseline_checked and why_not_learnt(
            self.state.gain(), self.state.failed_baseline_seeds(), confirmations.seeds_of(confirmations.full)
        )
        if reason:
            raise BudgetSearchError(f"{reason}; {self.settings.advice.not_learnt}")

    # -- screens ------------------------------------------------------------------------------------------------

    @property
    def _waits_for_screens(self) -> bool:
        """A confirmation is chosen only when all screens and all runs of the baseline are finished."""
        return any(job.split == "selection" or job.key.layers.is_full for job in self._running)

    def _next_screen(self, delta: float, position: int) -> Job | None:
        """The strategy's next proposal, while the search budget leaves a confirmation for this and each smaller delta;
        None when the strategy has finished, the budget allows no more screens, or the full model's is running."""
        if self.settings.waits_for_full("selection", self._running):
            return None
        if not self._proposed:
            confirmations = sum(other <= delta for other in self.settings.deltas)
            allowed = self._budget.fine_tunes(self.state.history, self._running, self.settings.total, confirmations)
            if allowed <= 0:
                self.ended_early |= not self._running
                return None
            wanted = self._wanted_screens(delta, position)
            wanted = wanted[: int(min(allowed, len(wanted)))]
            self._require_budget(wanted)
            self._proposed = wanted
        return self._proposed.pop(0) if self._proposed else None

    def _wanted_screens(self, delta: float, position: int) -> list[Job]:
        """The screens to start beside the running ones; empty when the strategy has finished or waits for these."""
        screens = self.state.screens
        needed = screens.needed(full_first=starts_from_full(self.settings.recipe))
        wanted = [self._screen(layers, rung) for layers, rung in needed]
        if wanted:
            return self._startable(wanted)
        if screens.rung not in screens.tolerance(delta).baselines:
            raise BudgetSearchError(
                f"the full model could not be fine-tuned for a screen; {self.settings.advice.not_trainable}"
            )
        screening = sum(job.split == "selection" for job in self._running)
        evaluations = self.settings.evaluations_until(position, screens.rung)
        problem = self.state.problem(delta, evaluations - screening)
        start = unmeasured(self.settings.start, screens.trials, problem)
        if startable := self._startable(self._screen(layers, screens.rung) for layers in start):
            return startable[: self.settings.width]
        proposed = propose(self.settings.strategy, screens.trials, problem)
        return self._startable(self._screen(layers, screens.rung) for layers in proposed)

    # -- confirmations ------------------------------------------------------------------------------------------

    def _next_confirmation(self, delta: float) -> Job | None:
        """A run of the next candidate, which is recorded first so that a resumed search continues with it.

        A candidate is started only if the search budget allows all of its runs.
        """
        candidate = self._most_promising(delta)
        if candidate is None:
            return None
        runs = self._runs_to_start(candidate)
        try:
            self._require_budget(runs)
        except OutOfBudget:
            if self._running:
                raise
            # Sets that are already confirmed may still answer this delta and smaller ones.
            self.ended_early = True
            return None
        self.state.add_candidate(candidate, delta)
        self._stage(f"confirming layers {candidate} for {tolerance(delta / 100)}")
        return runs[0]

    def _most_promising(self, delta: float) -> LayerSet | None:
        """The acquisition function's choice among the sets with fewer layers than the answer so far.

        ``auto`` considers all sets, other strategies the sets they screened; without tries left only begun ones count.
        """
        planned = self.state.candidates(delta)
        tries = self._tries(delta, planned)
        problem, trials = self.state.problem(delta), self.state.screens.trials
        # The surrogate does not model broken sets. So a candidate has at most one layer less than any working set.
        fewest = self.state.screens.fewest_working - 1
        screened = [trial.layers for trial in trials if trial.state != "failed" and not trial.layers.is_full]
        begun = {*self.state.confirmations.started, *(job.key.layers for job in self._running)}
        if self.settings.strategy == "auto":
            pool = problem.pool([*screened, *planned, *sorted(begun)])
        else:
            pool = Pool.of([layers for layers in screened if problem.allows(layers)], self.settings.total)
        depth = self._expected_depth(delta)
        tried = Counter(layers.depth for layers in planned)
        exhausted = [each for each, count in tried.items() if count >= CANDIDATES_PER_DEPTH]
        closed = {layers for layers in begun if not self._is_open(layers, delta)}
        wanted = pool.among(planned) | (~np.isin(pool.depths, exhausted) & bool(tries))
        pool = pool.where((fewest <= pool.depths) & (pool.depths < depth) & wanted & ~pool.among(closed))
        if not pool.sets:
            return None
        return choose(problem.surrogate(trials), pool, self.state.confirmation_rule(delta), depth, max(1, tries))

    def _tries(self, delta: float, planned: Sequence[LayerSet]) -> int:
        """How many more candidates this delta may have: at least one, and more while the search budget still allows one
        for each smaller delta. A set that holds for a smaller delta also holds for this one."""
        smaller = sum(other < delta for other in self.settings.deltas)
        allowed = self._budget.confirmations(self.state.history, self._running, self.settings.total) - smaller
        left = min(CANDIDATES_PER_DELTA - len(planned), allowed)
        return max(math.floor(left), 0 if planned else 1)

    def _expected_depth(self, delta: float) -> int:
        """Depth of the answer if the candidates whose last runs are running turn out as expected."""
        running = {job.key.layers for job in self._running if job.split == "certification"}
        last = [each for each in running if not self._runs_to_start(each) and self.settings.limits.allow(each)]
        expected = self.state.expected_to_hold(last, delta)
        return min([self.state.answer(delta).depth, *(layers.depth for layers in expected)])

    def _is_open(self, layers: LayerSet, delta: float) -> bool:
        """Whether this set is neither confirmed nor rejected and has a run to start."""
        settled = self.state.confirmations.is_complete(layers) or self.state.confirmations.is_futile(layers, delta)
        return not settled and bool(self._runs_to_start(layers))

    # -- evaluations --------------------------------------------------------------------------------------------

    def _screen(self, layers: LayerSet, rung: float) -> Job:
        keep_weights = layers.is_full and starts_from_full(self.settings.recipe)
        return Job(TrialKey(layers, rung, self.settings.screen_seed), "selection", keep_weights)

    def _runs_to_start(self, layers: LayerSet) -> list[Job]:
        """The confirmation runs of a set that are neither recorded nor running."""
        keys = (TrialKey(layers, FULL_RUNG, seed) for seed in self.settings.seeds)
        return self._startable(Job(key, "certification", keep_weights=True) for key in keys)

    def _startable(self, jobs: Iterable[Job]) -> list[Job]:
        return [job for job in self._missing(jobs) if job not in self._running]

    def _missing(self, jobs: Iterable[Job]) -> list[Job]:
        known = {job: self.state.find(job.key) for job in jobs}
        return [job for job, trial in known.items() if trial is None or trial.machine_failure]

    def _require_budget(self, jobs: Sequence[Job]) -> None:
        """Raises OutOfBudget if the search budget does not cover these jobs."""
        if not self._budget.covers(jobs, self.state.history, self._running):
            raise OutOfBudget

    def _stage(self, text: str) -> None:
        if text not in self._stages:
            self._stages.add(text)
            self._observer.stage(text)

    def notes(self) -> list[str]:
        """Sentences for the report on how the search went."""
        return notes(self.state, ended_early=self.ended_early)
