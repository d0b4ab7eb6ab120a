"""The smallest answers of the studies of `table2.py`, and whether the findings of *Poor Man's BERT* hold in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import product
from statistics import fmean, stdev

from scipy import special
from scipy.stats import binomtest

from budget_search.core.formatting import pairs, percent, plural, points
from budget_search.core.layers import FAMILIES, LayerSet, compact_indices
from budget_search.core.trial import FULL_RUNG
from budget_search.report.comparisons.measured_sets import MeasuredSet, measured_sets
from budget_search.report.layout import Section
from budget_search.report.report import Report

DELTAS = (0.01, 0.02, 0.03)
ROWS = ("top", "any")
DROPPED_SHARES = (Fraction(1, 3), Fraction(1, 2))
LEVEL = 0.05
UNCERTAIN = "cannot be told"
ROBUST = {"qqp", "stsb"}  # the tasks with the lowest degradation in the paper (section 4.2)


def smallest(report: Report, row: str, delta: float) -> tuple[int, ...] | None:
    """The layers dropped by the smallest confirmed set whose mean degradation is within delta (a fraction).

    Row `top` considers only sets that drop the uppermost layers, row `any` all sets; ties go to the lowest degradation.
    Empty for the full model. None if the study did not search: it has no search of all sets, or no full run of the next
    smaller set that drops the uppermost layers.
    """
    measured = [each for each in measured_sets(report) if row == "any" or is_top(each)]
    holding = [each for each in measured if each.confirmed and each.lost <= 100 * delta]
    best = min(holding, key=lambda each: (each.depth, each.lost), default=None)
    kept = tuple(range(report.layers_total)) if best is None else best.kept
    if row == "any":
        searched = report.question.get("strategy") not in FAMILIES and not report.question.get("layers")
    else:
        searched = len(kept) == 1 or any(each.rung == FULL_RUNG and each.depth == len(kept) - 1 for each in measured)
    return tuple(sorted(set(range(report.layers_total)) - set(kept))) if searched else None


def is_top(measured: MeasuredSet) -> bool:
    return measured.kept == tuple(range(measured.depth))


def both(reports: Sequence[Report]) -> Iterator[tuple[int, int]]:
    """The number of dropped layers in both rows, for each study and delta with both."""
    for report, delta in product(reports, DELTAS):
        top, anyhow = (smallest(report, row, delta) for row in ROWS)
        if top is not None and anyhow is not None:
            yield len(top), len(anyhow)


def robustness(reports: Sequence[Report]) -> float:
    """The mean share of layers that can be dropped from the top, over studies and deltas."""
    return fmean(
        len(smallest(report, "top", delta) or ()) / report.layers_total for report, delta in product(reports, DELTAS)
    )


def settings(reports: Sequence[Report]) -> list[str]:
    """The distinct recipes and devices; their numbers, from 1, are part of a model's label."""
    return list(dict.fromkeys(f"{pairs(report.recipe)}; on {pairs(report.device)}" for report in reports))


def label(report: Report, reports: Sequence[Report]) -> str:
    number = 1 + settings(reports).index(*settings([report]))
    return f"{report.model}, {plural(report.layers_total, 'layer')}, recipe {number}"


def findings(reports: Sequence[Report]) -> Section:
    """The paper's findings, and whether they hold here."""
    topped = [report for report in reports if all(smallest(report, "top", delta) is not None for delta in DELTAS)]
    return Section(
        "Do the paper's findings hold?",
        paragraphs=(
            gain(reports),
            *filter(None, (gain_at_equal_depth(report) for report in reports)),
            *(top_among_fixed(reports, share) for share in DROPPED_SHARES),
            lower_layers(reports),
            robust_tasks(topped),
            earlier_maturity(topped),
        ),
    )


def gain(reports: Sequence[Report]) -> str:
    pairs_of_depths = list(both(reports))
    if not pairs_of_depths:
        return "Searching all layers instead of the uppermost: not run."
    more = [anyhow - top for top, anyhow in pairs_of_depths]
    return (
        f"Searching all layers instead of the uppermost drops {fmean(more):.2f} layers more on average "
        f"(over {len(more)} cells; more in {sum(each > 0 for each in more)}, at most {max(more)})."
    )


def gain_at_equal_depth(report: Report) -> str:
    """Compares the smallest answer with as many of the lowest layers, seed by seed; empty without these."""
    answer = min((result for result in report.results if not result.is_full), key=lambda each: each.depth, default=None)
    if answer is None or answer.kept == tuple(range(answer.depth)):
        return ""
    found, top = (full_scores(report, kept) for kept in (answer.kept, tuple(range(answer.depth))))
    more = [found[seed] - top[seed] for seed in found.keys() & top.keys()]
    if len(more) < 2:
        return ""
    margin = special.stdtrit(len(more) - 1, 0.975) * stdev(more) / math.sqrt(len(more))
    return (
        f"{report.model}, {report.task}: {plural(answer.depth, 'layer')} found by the search "
        f"({compact_indices(answer.kept)}) score {points(fmean(more))} points more than the lowest "
        f"{answer.depth} (95 % interval over {plural(len(more), 'seed')}: {points(fmean(more) - margin)} to "
        f"{points(fmean(more) + margin)})."
    )


def full_scores(report: Report, kept: tuple[int, ...]) -> dict[int, float]:
    """The scores of a layer set with the full recipe, by seed."""
    return {
        trial.seed: trial.score
        for trial in report.trials
        if trial.kept == kept and trial.split == "certification" and trial.score is not None
    }


def top_among_fixed(reports: Sequence[Report], share: Fraction) -> str:
    """Compares the paper's fixed strategies where this share of the layers is dropped, by their confirmed sets."""
    finding = f"Top-dropping loses least of the fixed strategies at {share} of the layers dropped"
    compared, best = [], 0
    for report in reports:
        confirmed = {each.kept: each.lost for each in measured_sets(report) if each.confirmed}
        sets = {
            name: family(report.layers_total, int(share * report.layers_total)) for name, family in FAMILIES.items()
        }
        lost = {name: confirmed[each.kept] for name, each in sets.items() if each and each.kept in confirmed}
        if "top" in lost and len(lost) > 1:
            best += lost["top"] == min(lost.values())
            losses = ", ".join(
                f"{name} {points(each)}" for name, each in sorted(lost.items(), key=lambda pair: pair[1])
            )
            compared.append(f"{report.model}, {report.task}: {losses}")
    if not compared:
        return f"{finding}: cannot be checked, no study confirmed it and another one."
    return f"{finding}: in {best} of {len(compared)} comparisons. Points lost: {'; '.join(compared)}."


def fixed_set(strategy: str, total: int, share: Fraction) -> LayerSet | None:
    """The set of a fixed strategy without this share of the layers, if it has one."""
    return FAMILIES[strategy](total, int(share * total))


def lower_layers(reports: Sequence[Report]) -> str:
    """Tests whether the smallest sets within the largest delta, of searches of all layers, drop more upper layers."""
    finding = "Lower layers matter most"
    answers = [(report, smallest(report, "any", DELTAS[-1]) or ()) for report in reports]
    upper = [2 * index >= report.layers_total for report, dropped in answers for index in dropped]
    if not upper:
        return f"{finding}: cannot be checked, no search of all layers dropped a layer."
    probability = binomtest(sum(upper), len(upper)).pvalue
    verdict = held(2 * sum(upper) > len(upper)) if probability <= LEVEL else UNCERTAIN
    return (
        f"{finding}: {verdict}. {plural(sum(1 for _, dropped in answers if dropped), 'answer')} within "
        f"{100 * DELTAS[-1]:g} points dropped {plural(len(upper), 'layer')}, {sum(upper)} of them in the upper half "
        f"(binomial test: p = {probability:.2g})."
    )


def robust_tasks(reports: Sequence[Report]) -> str:
    """Compares models that were run on both kinds of tasks with one recipe."""
    finding = "QQP and STS-B lose least"
    groups: dict[bool, list[Report]] = {True: [], False: []}
    for name in dict.fromkeys(label(report, reports) for report in reports):
        studies = [report for report in reports if label(report, reports) == name]
        if len({report.task in ROBUST for report in studies}) == 2:
            for report in studies:
                groups[report.task in ROBUST].append(report)
    if not groups[True]:
        return f"{finding}: cannot be checked, no model was run on one of them and on another task with one recipe."
    robust, others = robustness(groups[True]), robustness(groups[False])
    tasks = " and ".join(sorted({report.task for report in groups[True]}))
    return (
        f"{finding}: {held(robust > others)}. Top-dropping drops {percent(robust)} of the layers on average on "
        f"{tasks}, {percent(others)} on the other tasks."
    )


def earlier_maturity(reports: Sequence[Report]) -> str:
    """Compares models of equal depth, one with xlnet and one with bert in its name, on one task with one recipe."""
    finding = "XLNet matures earlier than BERT"
    compared = [
        (xlnet, bert)
        for xlnet, bert in product(reports, reports)
        if "xlnet" in xlnet.model.lower()
        and "bert" in bert.model.lower()
        and (xlnet.task, xlnet.layers_total, xlnet.recipe) == (bert.task, bert.layers_total, bert.recipe)
    ]
    if not compared:
        return f"{finding}: cannot be checked, no two such models of equal depth were run on one task with one recipe."
    xlnet, bert = robustness([pair[0] for pair in compared]), robustness([pair[1] for pair in compared])
    return (
        f"{finding}: {held(xlnet > bert)}. Top-dropping drops {percent(xlnet)} of XLNet's layers on average, "
        f"{percent(bert)} of BERT's, in {plural(len(compared), 'comparison')} on the same task."
    )


def held(whether: bool) -> str:
    return "holds here" if whether else "does not hold here"
