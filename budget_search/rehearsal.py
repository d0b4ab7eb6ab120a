"""Searches rehearsed on made-up models: what a plan will probably run, before anything is run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

from joblib import Parallel, delayed

from budget_search.findings import Findings
from budget_search.generated import GeneratedModel, Noise
from budget_search.layers import LayerSet
from budget_search.limits import Limits
from budget_search.loop import Search
from budget_search.plan import Plan
from budget_search.replay import Memory, Silent
from budget_search.trial import FULL_RUNG, Job, SearchBudget, Trial, TrialKey
from budget_search.verdict import Judgement

REHEARSALS = 30
"""The smallest and the largest of so many hold between them what happens in 29 of 31 further ones on average."""
# Deeper models are rehearsed with so many layers: what a search costs goes by shares of the depth.
DEEPEST, SHALLOWEST = 12, 4


@dataclass(frozen=True)
class Rehearsal:
    """One search: what ran at the same time, in order; how many distinct answers; the seconds it took to decide."""

    total: int
    rounds: tuple[tuple[Job, ...], ...]
    answers: int
    deciding_seconds: float


def rehearse(plan: Plan, workers: int, *, first: int = 0, count: int | None = None) -> list[Rehearsal]:
    """Play the plan through on made-up models of about its depth, from number ``first`` on; the same plan is played
    alike."""
    if plan.named:
        return [_of_named_sets(plan)]
    total = min(max(plan.total, SHALLOWEST), DEEPEST)
    # How long evaluations take here is not known there.
    budget = SearchBudget(max_trials=plan.budget.max_trials)
    if total == plan.total:
        plan = dataclasses.replace(plan, budget=budget)
    else:
        plan = dataclasses.replace(
            plan, total=total, budget=budget, fixed=frozenset(), limits=Limits(), similarities=None, start=()
        )
    if plan.strategy == "contribution" and plan.similarities is None:
        plan = dataclasses.replace(plan, similarities=tuple(index / total for index in range(total)))
    with Parallel(n_jobs=workers) as parallel:
        return list(parallel(delayed(_play)(plan, number) for number in range(first, first + (count or REHEARSALS))))


def _of_named_sets(plan: Plan) -> Rehearsal:
    """Nothing to rehearse: what will run is known."""
    sets = [LayerSet.full(plan.total), *dict.fromkeys(plan.named)]
    rounds = tuple(
        tuple(Job(TrialKey(layers, FULL_RUNG, seed), "certification", keep_weights=True) for seed in plan.seeds)
        for layers in sets
    )
    return Rehearsal(plan.total, rounds, len(sets) - 1, 0.0)


def _play(plan: Plan, number: int) -> Rehearsal:
    model, memory, rounds = GeneratedModel(number, plan.total, Noise()), Memory(), list[tuple[Job, ...]]()

    def run_jobs(jobs: Iterable[Job | None]) -> Iterator[Trial]:
        following = iter(jobs)
        while together := tuple(filter(None, islice(following, plan.width))):
            rounds.append(together)
            yield from model.run_jobs(together)

    def judge(layers: LayerSet, confidence: float) -> Judgement:
        lost = findings.confirmations.lost(layers)
        # As with many certification examples: seeds alone blur.
        return Judgement(fmean(lost), 2 * model.noise.seed_sd**2 / len(lost), 0.0, 10, len(lost), 5_000, confidence)

    started = time.perf_counter()
    findings = Findings(plan, memory, judge)
    search = Search(findings, run_jobs, Silent())
    answers = {layers for layers in search.run().values() if not layers.is_full}
    return Rehearsal(plan.total, tuple(rounds), len(answers), time.perf_counter() - started)
