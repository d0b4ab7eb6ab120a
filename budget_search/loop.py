"""The loop and nothing else: resume, propose, skip what is known, evaluate, record, stop, confirm, choose.

Decides without torch. What is measured comes through ``run_jobs``, what is known is in the store's history, and every
decision is a function of that history: an interrupted search goes on as if nothing had happened.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from budget_search.allowance import Allowance
from budget_search.confirmations import Confirmations
from budget_search.errors import BudgetSearchError
from budget_search.ladder import Confirming, choose
from budget_search.layers import LayerSet
from budget_search.plan import History, Observer, Plan
from budget_search.screens import Screens
from budget_search.strategies import Question, propose
from budget_search.strategies.question import unmeasured
from budget_search.trial import FULL_RUNG, Job, Trial, TrialKey
from budget_search.verdict import Judgement, share_of_error

# Candidates confirmed for one delta at the most, and of one depth.
CANDIDATES_PER_DELTA = 5
CANDIDATES_PER_DEPTH = 2


class OutOfBudget(Exception):  # noqa: N818 - a turn of events, not an error
    """The search budget does not allow the next evaluations."""


class Search:
    """One question put to one study.

    ``run_jobs`` takes a job whenever it can run one and yields trials in any order; a job that is None says that the
    next depends on trials still to come. ``judge(layers, confidence)`` compares a set that
    has all its confirmations with the baseline.
    """

    def __init__(
        self,
        plan: Plan,
        store: History,
        run_jobs: Callable[[Iterable[Job | None]], Iterator[Trial]],
        judge: Callable[[LayerSet, float], Judgement],
        observer: Observer,
    ) -> None:
        self.plan = plan
        self._store = store
        self._run_jobs = run_jobs
        self._judge = judge
        self._observer = observer
        self._allowance = Allowance(plan.budget, len(plan.seeds), plan.width)
        self._views: tuple[Confirmations, Screens] | None = None
        self.fine_tuned = 0
        self.ended_early = False

    # -- the way of a search ------------------------------------------------------------------------------------

    def run(self) -> dict[float, LayerSet]:
        """Answer every delta: the smallest confirmed layer set, the full model where none holds.

        Raises BudgetSearchError when the baseline cannot be measured.
        """
        self._measure_baseline()
        for position, delta in enumerate(sorted(self.plan.deltas, reverse=True)):
            try:
                self._answer(delta, self.plan.evaluations_until(position))
            except OutOfBudget:
                self.ended_early = True
                break
        return self.answers()

    def answers(self, deltas: Iterable[float] | None = None) -> dict[float, LayerSet]:
        """Per delta (those of the plan, unless given) the smallest set confirmed so far, of equals the one that lost
        less; else the full model."""
        confirmations = self.confirmations()
        chosen = {}
        for delta in self.plan.deltas if deltas is None else deltas:
            eligible = [layers for layers in confirmations.sets if not self.plan.named or layers in self.plan.named]
            holding = [layers for layers in eligible if self.plan.limits.allow(layers) and self.holds(layers, delta)]
            chosen[delta] = min(
                holding,
                key=lambda layers: (layers.depth, statistics.fmean(confirmations.lost(layers))),
                default=confirmations.full,
            )
        return chosen

    def confirmations(self) -> Confirmations:
        return self._seen()[0]

    def screens(self) -> Screens:
        return self._seen()[1]

    def _seen(self) -> tuple[Confirmations, Screens]:
        """What the history says, made anew only when it has grown."""
        if self._views is None:
            plan, history = self.plan, self._store.history
            self._views = (
                Confirmations(history, plan.total, plan.seeds),
                Screens(history, plan.total, plan.screen_rung, plan.screen_seed),
            )
        return self._views

    def expected_losses(self, sets: Sequence[LayerSet]) -> list[float]:
        """Points that sets are expected to lose in full, by all that was measured."""
        screens = self.screens()
        if not sets or screens.rung not in screens.tolerance(0.0).baselines:
            return []
        expected, _ = self._question(0.0, screens, 0).surrogate(screens.judged).expect(sets)
        return [float(lost) for lost in expected]

    def _measure_baseline(self) -> None:
        self._observer.stage(f"baseline: all {self.plan.total} layers, {len(self.plan.seeds)} seeds")
        full = LayerSet.full(self.plan.total)
        jobs = [self._confirmation(full, seed) for seed in self.plan.seeds]
        if not self.plan.named:
            jobs.append(self._screen(full, self.plan.screen_rung))
        self._ensure(jobs, unavoidable=True)
        confirmations = self.confirmations()
        if failed := confirmations.failed(full):
            raise BudgetSearchError(
                f"the full model could not be fine-tuned ({failed.error}): nothing can be compared with it; "
                "try a lower --lr or --precision fp32"
            )
        collapsed = confirmations.collapsed(full)
        if 2 * collapsed > len(self.plan.seeds):
            raise BudgetSearchError(
                f"the full model learnt nothing: with {collapsed} of {len(self.plan.seeds)} seeds it predicts a single "
                "class, and nothing compares with that; give it more --epochs or --train-examples, or another --lr"
            )

    def _answer(self, delta: float, evaluations: int) -> None:
        """Screen and confirm in turns: what a confirmation shows of the screens serves the next."""
        if self.plan.named:
            self._observer.stage("measuring the named layer sets")
            for layers in self.plan.named:
                self._ensure([self._confirmation(layers, seed) for seed in self.plan.seeds])
        else:
            self._observer.stage(f"searching for the fewest layers within {delta:g} points")
            self._explore(delta, evaluations)
            while (candidate := self._next_candidate(delta)) is not None:
                self._confirm(candidate, delta)
                self._explore(delta, evaluations)
        self._observer.answered(delta, self.answers()[delta])

    def notes(self) -> list[str]:
        """Sentences for the report on how the search went."""
        screens = self.screens()
        notes = []
        if self.ended_early:
            notes.append("The search budget (--max-trials, --max-hours) ended the search before it was finished.")
        if collapsed := self.confirmations().collapsed(LayerSet.full(self.plan.total)):
            notes.append(
                f"The full model predicted a single class with {collapsed} of {len(self.plan.seeds)} seeds. That "
                "flatters smaller sets, which are compared with its mean; nothing is certified."
            )
        if not self.plan.named:
            notes.append(
                f"Screens were fine-tunes of {screens.rung:.3g} of the recipe with one seed, scored on selection; "
                "no answer rests on them."
            )
            if screens.rung > self.plan.screen_rung:
                notes.append(
                    f"Screens of {self.plan.screen_rung:.3g} of the recipe ranked layer sets otherwise than runs twice "
                    "as long, or taught the full model nothing: they were lengthened."
                )
        return notes

    # -- screens ------------------------------------------------------------------------------------------------

    def _explore(self, delta: float, evaluations: int) -> None:
        """Screen what the strategy proposes until it has finished, this many sets are screened, or no more can be
        afforded: what a confirmation takes is held back, for this delta and for each that is still to come."""
        self._run(self._next_screens(delta, evaluations))

    def _next_screens(self, delta: float, evaluations: int) -> Iterator[Job | None]:
        """A screen for whoever is free, so that nobody waits for the slowest of a round; None while the next depends on
        those that are running. What fails for the machine's reasons is run once more."""
        confirmations = sum(other <= delta for other in self.plan.deltas)
        running: dict[Job, Trial | None] = {}
        queue: list[Job] = []
        failed: list[Job] = []
        retried: set[Job] = set()
        while True:
            # Of what is run once more, the store holds the failure until the new trial has come.
            came = [job for job, earlier in running.items() if self._store.find(job.key) is not earlier]
            failed += self._unknown(came)
            running = {job: earlier for job, earlier in running.items() if job not in came}
            if not queue and failed:
                queue, failed = self._once_more(failed, retried), []
            if not queue:
                allowed = self._allowance.fine_tunes(self._store.history, self.plan.total, confirmations) - len(running)
                wanted = self._wanted_screens(delta, evaluations - len(running), running) if allowed > 0 else []
                queue = wanted[: int(min(max(0, allowed), len(wanted)))]
                in_time = self._allowance.covers([*running, *queue], self._store.history, self.plan.total)
                if queue and not in_time:
                    queue = []
                if not queue and not running:
                    if wanted and not in_time:
                        raise OutOfBudget
                    self.ended_early |= allowed <= 0
                    return
            if queue:
                running[queue[0]] = self._store.find(queue[0].key)
            yield queue.pop(0) if queue else None

    def _once_more(self, failed: list[Job], retried: set[Job]) -> list[Job]:
        if twice := [job for job in failed if job in retried]:
            raise self._failed_twice(twice[0])
        self._observer.stage(f"once more: {len(failed)} evaluations that failed for the machine's reasons")
        retried.update(failed)
        return failed

    def _wanted_screens(self, delta: float, evaluations: int, running: Collection[Job]) -> list[Job]:
        """What to screen beside what is running; empty when finished, or until that has come."""
        screens = self.screens()
        wanted = [self._screen(layers, rung) for layers, rung in screens.doubtful()]
        if not wanted and screens.rung in screens.tolerance(delta).baselines:
            question = self._question(delta, screens, evaluations)
            inherited = unmeasured(self.plan.start, screens.judged, question)
            wanted = [self._screen(layers, screens.rung) for layers in inherited]
            wanted = [job for job in wanted if job not in running][: question.width]
            if not wanted:
                proposed = propose(self.plan.strategy, screens.judged, question)
                wanted = [self._screen(layers, screens.rung) for layers in proposed]
        elif not wanted and not running:
            raise BudgetSearchError(
                "the full model could not be fine-tuned for a screen; try a lower --lr or --precision fp32"
            )
        return [job for job in self._unknown(wanted) if job not in running]

    # -- confirmations ------------------------------------------------------------------------------------------

    def _next_candidate(self, delta: float) -> LayerSet | None:
        """The next set to confirm, written down before it is: a plan that a resumed search finds and keeps to.

        None is begun that the search budget will not see to its end.
        """
        planned = self._candidates(delta)
        candidate = self._most_promising(delta, planned, self._tries(delta, planned))
        if candidate is None:
            return None
        runs = self._unknown(self._confirmation(candidate, seed) for seed in self.plan.seeds)
        if not self._allowance.covers(runs, self._store.history, self.plan.total):
            self.ended_early = True
            return None
        if candidate not in planned:
            self._store.note(**{self._plan_name(delta): [layers.compact for layers in (*planned, candidate)]})
        return candidate

    def _tries(self, delta: float, planned: Sequence[LayerSet]) -> int:
        """How many more sets may be tried for this delta: one in any case, further ones while the search budget leaves
        one to each of the smaller deltas. What holds for them holds for this one."""
        smaller = sum(other < delta for other in self.plan.deltas)
        allowed = self._allowance.confirmations(self._store.history, self.plan.total) - smaller
        left = min(CANDIDATES_PER_DELTA - len(planned), allowed)
        return max(math.floor(left), 0 if planned else 1)

    def _most_promising(self, delta: float, planned: Sequence[LayerSet], tries: int) -> LayerSet | None:
        """By the surrogate, of the sets with fewer layers than the answer so far: of those that were screened, or,
        where the strategy is free to choose, of all; with so many tries, what was begun beside them."""
        screens, confirmations = self.screens(), self.confirmations()
        question = self._question(delta, screens, 0)
        screened = [trial.layers for trial in screens.judged if trial.state != "failed" and not trial.layers.is_full]
        free = self.plan.strategy == "auto"
        answer = self.answers([delta])[delta]
        tried = [layers.depth for layers in planned]
        pool = [
            layers
            for layers in (question.sets(screened) if free else screened)
            if layers.depth < answer.depth
            and question.allows(layers)
            and self._is_open(layers, delta, confirmations)
            and (layers in planned or (tries and tried.count(layers.depth) < CANDIDATES_PER_DEPTH))
        ]
        if not pool:
            return None
        allowed = delta - self._bound_width() if self.plan.criterion == "certified" else delta
        confirming = Confirming(allowed, question.seed_sd, question.seeds, question.in_full)
        return choose(question.surrogate(screens.judged), pool, confirming, answer.depth, max(1, tries))

    def _question(self, delta: float, screens: Screens, evaluations: int) -> Question:
        confirmations = self.confirmations()
        return Question(
            total=self.plan.total,
            tolerance=screens.tolerance(delta),
            fixed=self.plan.fixed | self.plan.limits.keep,
            limits=self.plan.limits,
            similarities=self.plan.similarities,
            sampler=self.plan.sampler,
            seed=self.plan.screen_seed,
            width=self.plan.width,
            evaluations=evaluations,
            deltas=tuple(sorted(self.plan.deltas, reverse=True)),
            in_full=confirmations.in_full,
            seed_sd=confirmations.seed_sd,
            seeds=len(self.plan.seeds),
        )

    def _bound_width(self) -> float:
        """About how far the upper bound lies above the mean, in points."""
        return 2.0 * self.confirmations().seed_sd * math.sqrt(2 / len(self.plan.seeds))

    def _candidates(self, delta: float) -> list[LayerSet]:
        return [LayerSet.parse(text, self.plan.total) for text in self._store.facts.get(self._plan_name(delta), [])]

    def _is_open(self, layers: LayerSet, delta: float, confirmations: Confirmations) -> bool:
        """Whether confirming this set further can still tell something."""
        return not confirmations.is_complete(layers) and not confirmations.hopeless(layers, delta)

    def judge(self, layers: LayerSet, delta: float) -> Judgement:
        """A confirmed set against the baseline, at its share of the delta's confidence.

        The error is split among the candidates in the order in which they were written down, then those confirmed for
        other deltas.
        """
        if self.plan.named:
            share = 1 / len(set(self.plan.named))
        else:
            planned = self._candidates(delta)
            others = sorted(other for other in self.confirmations().sets if other not in planned)
            share = share_of_error([*planned, *others].index(layers))
        judgement = self._judge(layers, 1 - (1 - self.plan.confidence) * share)
        confirmations = self.confirmations()
        collapsed = confirmations.collapsed(layers) + confirmations.collapsed(confirmations.full)
        return replace(judgement, collapsed=collapsed)

    def _confirm(self, layers: LayerSet, delta: float) -> None:
        """Run the full recipe with as many more of the confirmation seeds as run at the same time."""
        self._observer.stage(f"confirming layers {layers} for {delta:g} points")
        done = self.confirmations().scores(layers)
        left = [seed for seed in self.plan.seeds if seed not in done]
        self._ensure([self._confirmation(layers, seed) for seed in left[: self.plan.width]])

    def holds(self, layers: LayerSet, delta: float) -> bool:
        """Whether a confirmed set is within delta (points), by the criterion."""
        judgement = self.judge(layers, delta)
        if self.plan.criterion == "certified":
            return judgement.certified(delta)
        return judgement.degradation <= delta

    # -- evaluations --------------------------------------------------------------------------------------------

    def _screen(self, layers: LayerSet, rung: float) -> Job:
        return Job(TrialKey(layers, rung, self.plan.screen_seed), "selection")

    def _confirmation(self, layers: LayerSet, seed: int) -> Job:
        return Job(TrialKey(layers, FULL_RUNG, seed), "certification", keep_weights=True)

    def _ensure(self, jobs: Iterable[Job], *, unavoidable: bool = False) -> None:
        """Run what is not known yet, and once more what fails for the machine's reasons; record as it comes."""
        wanted = self._unknown(jobs)
        for attempt in range(2):
            if not wanted:
                return
            if attempt:
                self._observer.stage(f"once more: {len(wanted)} evaluations that failed for the machine's reasons")
            elif not unavoidable and not self._allowance.covers(wanted, self._store.history, self.plan.total):
                raise OutOfBudget
            self._run(wanted)
            wanted = self._unknown(wanted)
        if wanted:
            raise self._failed_twice(wanted[0])

    def _failed_twice(self, job: Job) -> BudgetSearchError:
        failed = self._store.find(job.key)
        return BudgetSearchError(
            f"an evaluation failed twice for the machine's reasons ({failed.error if failed else 'it never came'}): "
            f"{job.key}; free memory, or try --workers 1 or a smaller --batch-size or --max-length, then run the same "
            "command again"
        )

    def _run(self, jobs: Iterable[Job | None]) -> None:
        """Record what comes as it comes."""
        for trial in self._run_jobs(jobs):
            self._store.append(trial)
            self._views = None
            self.fine_tuned += not trial.machine_failure
            self._observer.finished(trial)

    def _unknown(self, jobs: Iterable[Job]) -> list[Job]:
        known = {job: self._store.find(job.key) for job in jobs}
        return [job for job, trial in known.items() if trial is None or trial.machine_failure]

    def _plan_name(self, delta: float) -> str:
        """Another question to the same study makes a plan of its own."""
        plan = self.plan
        seeds = f"{len(plan.seeds)} seeds from {plan.seeds[0]}"
        limits = f", {plan.limits.compact}" if plan.limits.asked else ""
        return f"candidates for {delta:g} points, {plan.criterion}, {plan.strategy}, {seeds}{limits}"
