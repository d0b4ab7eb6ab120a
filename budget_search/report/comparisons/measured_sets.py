"""The measured layer sets of a report: their losses, the best by depth and strategy, and answers for any delta."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from budget_search.core.layers import FAMILIES, LayerSet
from budget_search.core.trial import Tolerance
from budget_search.layer_search.strategies.fixed import contribution
from budget_search.layer_search.strategies.problem import SearchProblem
from budget_search.report.entries import Result
from budget_search.report.report import Report

FRONTIER_DELTAS = tuple(step / 200 for step in range(1, 11))
"""The deltas, 0.5 to 5 points, for which ``answers_by_delta`` gives an answer."""


@dataclass(frozen=True)
class MeasuredSet:
    """A layer set, its mean score and its loss against the full model with the same recipe and seeds, in points.

    ``std`` is the standard deviation of the paired losses over the seeds; None with one seed. ``confirmed``: the full
    recipe with all seeds that were asked for. ``collapsed``: some of its runs predicted only one class.
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
    """Every smaller set that has a score, by its longest fine-tune; sorted by depth, then layers.

    A loss is against the baseline at the same rung, on the same split.
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
    measured: dict[tuple[int, ...], MeasuredSet] = {}
    for stage, by_set in sorted(scores.items()):
        rung, certification = stage
        baseline = by_set.pop(full, {})
        # Only the baseline and the answers have the further seeds of --certify.
        required = (baseline.keys() & {*_asked_seeds(report)}) or baseline.keys()
        for kept, by_seed in by_set.items():
            lost = [baseline[seed] - score for seed, score in by_seed.items() if seed in baseline]
            if lost:
                std = statistics.stdev(lost) if len(lost) > 1 else None
                confirmed = certification and by_seed.keys() >= required
                score = statistics.fmean(by_seed.values())
                measured[kept] = MeasuredSet(
                    kept, rung, score, statistics.fmean(lost), std, confirmed, (stage, kept) in collapsed
                )
    return sorted(measured.values(), key=lambda each: (each.depth, each.kept))


def _asked_seeds(report: Report) -> range:
    """The seeds of the baseline and of every confirmation; empty in an invented report without a question."""
    first = report.question.get("base_seed", 0)
    return range(first, first + report.question.get("seeds", 0))


def best_by_depth(sets: list[MeasuredSet]) -> list[MeasuredSet]:
    """The set of each depth that lost least, among the confirmed ones if there are any; deepest first."""
    best: dict[int, MeasuredSet] = {}
    for measured in sorted(_informative(sets), key=lambda each: (not each.confirmed, each.lost, each.kept)):
        best.setdefault(measured.depth, measured)
    return [best[depth] for depth in sorted(best, reverse=True)]


def _informative(sets: list[MeasuredSet]) -> list[MeasuredSet]:
    """Without collapsed screens: a collapse in a short fine-tune says little about the layers."""
    return [each for each in sets if each.confirmed or not each.collapsed]


def families(report: Report, sets: list[MeasuredSet]) -> dict[str, list[MeasuredSet]]:
    """The measured sets of each of the paper's families, deepest first; families with fewer than two are left out."""
    known = {each.kept: each for each in _informative(sets)}
    measured = {}
    for name, family in FAMILIES.items():
        layers = (family(report.layers_total, dropped) for dropped in range(1, report.layers_total))
        members = [known[each.kept] for each in layers if each is not None and each.kept in known]
        if len(members) > 1:
            measured[name] = members
    return measured


def strategy_sets(report: Report) -> dict[str, list[MeasuredSet]]:
    """The measured sets that each strategy would propose, deepest first.

    The strategies are the paper's families, contribution-based dropping if the layers' similarities are known, and
    greedy elimination as far as all its choices were measured.
    """
    sets = measured_sets(report)
    known = {each.kept: each for each in sets}
    measured = families(report, sets)
    proposed = {"contribution": _by_contribution(report), "greedy": greedy_chain(report)}
    for name, chain in proposed.items():
        if members := [known[layers.kept] for layers in chain if layers.kept in known]:
            measured[name] = sorted(members, key=lambda each: -each.depth)
    return measured


def _by_contribution(report: Report) -> list[LayerSet]:
    if report.similarities is None:
        return []
    problem = SearchProblem(report.layers_total, Tolerance(0.0, {}), similarities=report.similarities)
    return contribution([], problem)


def single_seed_losses(report: Report) -> tuple[dict[LayerSet, float], dict[LayerSet, float]]:
    """Points lost with one seed: by full runs with the baseline's first seed, and by screens, each by layer set.

    Of a set with several screens the longest counts. The full model is in neither.
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
    """The sets that greedy elimination chooses, one layer fewer each, as far as all its choices were measured.

    A step compares runs of one kind: full runs, or else screens.
    """
    chain: list[LayerSet] = []
    layers = LayerSet.full(report.layers_total)
    while children := list(layers.smaller()):
        kind = next((lost for lost in single_seed_losses(report) if all(child in lost for child in children)), None)
        if kind is None:
            break
        layers = min(children, key=lambda child: (kind[child], child))
        chain.append(layers)
    return chain


@dataclass(frozen=True)
class DeltaRange:
    """The smallest confirmed set within every delta (a fraction) from ``low`` to ``high``.

    ``confirmed`` is None for the full model. ``screened`` is a smaller set that is within these deltas by a screen.
    """

    low: float
    high: float
    confirmed: MeasuredSet | None
    screened: MeasuredSet | None


def answers_by_delta(report: Report) -> list[DeltaRange]:
    """The answers for ``FRONTIER_DELTAS``; neighbours with the same answer form one range."""
    best = best_by_depth(measured_sets(report))
    merged: list[DeltaRange] = []
    for delta in FRONTIER_DELTAS:
        within = [each for each in best if each.lost <= 100 * delta]
        confirmed = min((each for each in within if each.confirmed), key=lambda each: each.depth, default=None)
        shallower = (each for each in within if confirmed is None or each.depth < confirmed.depth)
        screened = min(shallower, key=lambda each: each.depth, default=None)
        last = merged[-1] if merged else None
        if last and (last.confirmed, last.screened) == (confirmed, screened):
            merged[-1] = DeltaRange(last.low, delta, confirmed, screened)
        else:
            merged.append(DeltaRange(delta, delta, confirmed, screened))
    return merged


def distinct_answers(report: Report) -> list[Result]:
    """The smaller answers in the order of their deltas; each layer set once, with its smallest delta."""
    answers: dict[tuple[int, ...], Result] = {}
    for result in sorted(report.results, key=lambda result: result.delta):
        if not result.is_full:
            answers.setdefault(result.kept, result)
    return list(answers.values())
