"""What the trials of a report show, set by set: what plots draw, and the answer for any delta read off it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from budget_search.core.layers import FAMILIES, LayerSet
from budget_search.core.trial import Tolerance
from budget_search.layer_search.strategies.fixed import contribution
from budget_search.layer_search.strategies.problem import SearchProblem
from budget_search.report.entries import Result
from budget_search.report.report import Report

READ_OFF = tuple(step / 200 for step in range(1, 11))
"""The deltas, 0.5 to 5 points, that are read off the frontier."""


@dataclass(frozen=True)
class MeasuredSet:
    """A layer set, its mean score and what it lost against the full model with the same recipe and seeds, in points.

    ``std`` is over the seeds, of the paired losses; None with one seed. ``confirmed``: the full recipe with all of
    the baseline's seeds. ``collapsed``: some of its runs predicted one class only.
    """

    kept: tuple[int, ...]
    rung: float
    score: float
    lost: float
    std: float | None
    confirmed: bool
    collapsed: bool = False

    @property
    def depth(self) -> int:
        return len(self.kept)


def measured_sets(report: Report) -> list[MeasuredSet]:
    """Every smaller set that has a score, by the longest fine-tune it was given; by depth, then layers.

    A loss is against the baseline's scores with the same part of the recipe, on the same split.
    """
    scores: dict[tuple[float, bool], dict[tuple[int, ...], dict[int, float]]] = {}
    collapsed = set()
    for trial in report.trials:
        if trial.score is not None:
            stage = (trial.rung, trial.split == "certification")
            if trial.state == "collapsed":
                collapsed.add((stage, trial.kept))
            scores.setdefault(stage, {}).setdefault(trial.kept, {})[trial.seed] = trial.score
    full = tuple(range(report.layers_total))
    found: dict[tuple[int, ...], MeasuredSet] = {}
    for stage, by_set in sorted(scores.items()):
        rung, certification = stage
        baseline = by_set.pop(full, {})
        for kept, by_seed in by_set.items():
            lost = [baseline[seed] - score for seed, score in by_seed.items() if seed in baseline]
            if lost:
                std = statistics.stdev(lost) if len(lost) > 1 else None
                confirmed = certification and by_seed.keys() >= baseline.keys()
                score = statistics.fmean(by_seed.values())
                found[kept] = MeasuredSet(
                    kept, rung, score, statistics.fmean(lost), std, confirmed, (stage, kept) in collapsed
                )
    return sorted(found.values(), key=lambda measured: (measured.depth, measured.kept))


def best_by_depth(sets: list[MeasuredSet]) -> list[MeasuredSet]:
    """Of each depth the set that lost least, of confirmed ones where there are any; deepest first."""
    best: dict[int, MeasuredSet] = {}
    for measured in sorted(_telling(sets), key=lambda each: (not each.confirmed, each.lost, each.kept)):
        best.setdefault(measured.depth, measured)
    return [best[depth] for depth in sorted(best, reverse=True)]


def _telling(sets: list[MeasuredSet]) -> list[MeasuredSet]:
    """A collapsed run that nobody confirmed says that it was too short, not what its layers are worth."""
    return [each for each in sets if each.confirmed or not each.collapsed]


def families(report: Report, sets: list[MeasuredSet]) -> dict[str, list[MeasuredSet]]:
    """The sets that a family of the paper would have named, by family, deepest first; a family of one is none."""
    known = {measured.kept: measured for measured in _telling(sets)}
    found = {}
    for name, family in FAMILIES.items():
        layers = (family(report.layers_total, dropped) for dropped in range(1, report.layers_total))
        members = [known[each.kept] for each in layers if each is not None and each.kept in known]
        if len(members) > 1:
            found[name] = members
    return found


def strategy_sets(report: Report) -> dict[str, list[MeasuredSet]]:
    """What every strategy would have proposed, by strategy, deepest first, as far as it was measured.

    The families of the paper, contribution-based dropping where the layers' similarities are known, and greedy
    elimination as far as every step of it was measured.
    """
    sets = measured_sets(report)
    known = {measured.kept: measured for measured in sets}
    found = families(report, sets)
    proposed = {"contribution": _by_contribution(report), "greedy": greedy_chain(report)}
    for name, chain in proposed.items():
        if members := [known[layers.kept] for layers in chain if layers.kept in known]:
            found[name] = sorted(members, key=lambda measured: -measured.depth)
    return found


def _by_contribution(report: Report) -> list[LayerSet]:
    if report.similarities is None:
        return []
    question = SearchProblem(report.layers_total, Tolerance(0.0, {}), similarities=report.similarities)
    return contribution([], question)


def one_seed(report: Report) -> tuple[dict[LayerSet, float], dict[LayerSet, float]]:
    """Points that sets lost in one run each: those run in full, with the baseline's first seed, and those screened.

    A screened set counts by its longest screen. The full model is in neither.
    """
    total, full = report.layers_total, tuple(range(report.layers_total))
    scores = {(row.split, row.rung, row.seed, row.kept): row.score for row in report.trials if row.score is not None}
    first = min((seed for split, _, seed, kept in scores if split == "certification" and kept == full), default=None)
    in_full: dict[LayerSet, float] = {}
    screened: dict[LayerSet, float] = {}
    for (split, rung, seed, kept), score in sorted(scores.items()):
        baseline = scores.get((split, rung, seed, full))
        if kept != full and baseline is not None:
            if split == "selection":
                screened[LayerSet(kept, total)] = baseline - score
            elif seed == first:
                in_full[LayerSet(kept, total)] = baseline - score
    return in_full, screened


def greedy_chain(report: Report) -> list[LayerSet]:
    """The sets that greedy elimination steps through, one layer less each, as far as every choice was measured.

    A step compares runs of one kind: all in full, or else all screens.
    """
    chain: list[LayerSet] = []
    layers = LayerSet.full(report.layers_total)
    while children := list(layers.smaller()):
        kind = next((lost for lost in one_seed(report) if all(child in lost for child in children)), None)
        if kind is None:
            break
        layers = min(children, key=lambda child: (kind[child], child))
        chain.append(layers)
    return chain


@dataclass(frozen=True)
class Reading:
    """What the frontier shows for a range of deltas (fractions): the smallest set that was confirmed within it.

    ``confirmed`` None is the full model. ``screened`` is a smaller set that was within it on a short fine-tune alone.
    """

    low: float
    high: float
    confirmed: MeasuredSet | None
    screened: MeasuredSet | None


def readings(report: Report) -> list[Reading]:
    """For every delta of ``READ_OFF``, neighbours with the same answer as one."""
    best = best_by_depth(measured_sets(report))
    merged: list[Reading] = []
    for delta in READ_OFF:
        within = [each for each in best if each.lost <= 100 * delta]
        confirmed = min((each for each in within if each.confirmed), key=lambda each: each.depth, default=None)
        shallower = (each for each in within if confirmed is None or each.depth < confirmed.depth)
        screened = min(shallower, key=lambda each: each.depth, default=None)
        last = merged[-1] if merged else None
        if last and (last.confirmed, last.screened) == (confirmed, screened):
            merged[-1] = Reading(last.low, delta, confirmed, screened)
        else:
            merged.append(Reading(delta, delta, confirmed, screened))
    return merged


def distinct_answers(report: Report) -> list[Result]:
    """The smaller answers, each once, by the delta; where several deltas have one, the smallest's."""
    found: dict[tuple[int, ...], Result] = {}
    for result in sorted(report.results, key=lambda result: result.delta):
        if not result.is_full:
            found.setdefault(result.kept, result)
    return list(found.values())
