"""Sections of the longer formats: answers for other deltas, changed predictions, how to reproduce the study."""

from __future__ import annotations

from collections.abc import Iterator

from budget_search.core.formatting import NO_VALUE, pairs, plural, points, share, tolerance
from budget_search.core.layers import compact_indices
from budget_search.report.comparisons.measured_sets import DeltaRange, MeasuredSet, distinct_answers
from budget_search.report.comparisons.measured_sets import answers_by_delta as delta_ranges
from budget_search.report.comparisons.paper_protocols import protocol_sections
from budget_search.report.entries import PredictionChanges, Result, Slice
from budget_search.report.layout import Grid, Section
from budget_search.report.report import Report

FLIPPED_LABELS = "The prediction changed with every seed. Texts are decoded tokens; long ones are shortened."
CHANGED_SCORES = "First the largest changes away from the true score, then towards it; means over the seeds."


def details(report: Report) -> list[Section]:
    """The sections that apply to a report."""
    applicable = [answers_by_delta(report)] if report.trials else []
    applicable += protocol_sections(report)
    for result in distinct_answers(report):
        applicable += prediction_changes(result)
    return [*applicable, reproduce(report)]


def answers_by_delta(report: Report) -> Section:
    """The answer for every delta from 0.5 to 5 points, based on the measured sets."""
    rows = tuple(_delta_row(report, deltas) for deltas in delta_ranges(report))
    headers = ("allowed loss", "fewest layers confirmed", "points lost", "short fine-tunes suggest")
    return Section(
        "Answers for other allowed losses",
        grid=Grid(headers, rows, {"fewest layers confirmed": 20}, ("points lost",)),
        legend=(
            "Based on the measured layer sets. For losses other than those searched, fewer layers may suffice: search "
            "with that --delta, which reuses all trials.",
            "suggest: within the allowed loss relative to the full model after an equal fine-tune; not confirmed.",
        ),
    )


def _delta_row(report: Report, deltas: DeltaRange) -> tuple[str, ...]:
    confirmed, screened = deltas.confirmed, deltas.screened
    lowest = "" if deltas.low == deltas.high else f"{100 * deltas.low:g} to "
    return (
        f"{lowest}{tolerance(deltas.high)}",
        f"{report.layers_total} (all)" if confirmed is None else _named(confirmed),
        points(0.0) if confirmed is None else points(confirmed.lost),
        NO_VALUE if screened is None else _named(screened),
    )


def _named(measured: MeasuredSet) -> str:
    return f"{measured.depth} ({compact_indices(measured.kept)})"


def prediction_changes(result: Result) -> Iterator[Section]:
    """Where an answer is worse, by label and length, and examples of changed predictions; none for the full model."""
    changes = result.changes
    if changes is None:
        return
    name = f"{plural(result.depth, 'layer')} ({compact_indices(result.kept)})"
    unit = "error" if changes.regression else "accuracy"
    headers = (f"{changes.split} examples", "number", f"{unit} of all layers", f"{unit} of these", "worse by", "95 %")
    yield Section(
        f"Where {name} got worse",
        paragraphs=tuple(_churn(changes)),
        grid=Grid(headers, tuple(map(_slice_row, changes.slices)), right=headers[1:]) if changes.slices else None,
        legend=tuple(_slices_legend(changes)),
    )
    if changes.flips:
        rows = tuple(
            (" | ".join(flip.texts) or NO_VALUE, flip.label, flip.before, flip.after) for flip in changes.flips
        )
        yield Section(
            f"Examples that {name} predict differently",
            grid=Grid(("example", "label", "all layers", "these layers"), rows),
            legend=(CHANGED_SCORES if changes.regression else FLIPPED_LABELS,),
        )


def _churn(changes: PredictionChanges) -> Iterator[str]:
    if changes.regression:
        text = f"Predictions differ from the full model's with the same seed by {changes.churn:.3g} on average"
        if changes.churn_between_seeds is not None:
            text += f"; those of two full models that differ only in the seed, by {changes.churn_between_seeds:.3g}"
        yield f"{text} (mean absolute difference over {changes.examples:,} {changes.split} examples)."
        return
    lost, won = changes.lost or 0.0, changes.won or 0.0
    text = (
        f"On {share(changes.churn)} of {changes.examples:,} {changes.split} examples, the prediction differs from the "
        f"full model's with the same seed: {share(lost)} changed from right to wrong, {share(won)} from wrong to right"
    )
    between = changes.churn - lost - won
    yield f"{text}, {share(between)} from one wrong label to another." if between > 1e-9 else f"{text}."
    if changes.churn_between_seeds is not None:
        yield (
            f"Two full models that differ only in the seed disagree on {share(changes.churn_between_seeds)} of the "
            "examples."
        )
    if changes.directions:
        ways = (f"{each.before} became {each.after} in {share(each.share)}" for each in changes.directions)
        yield f"Changes of label: {', '.join(ways)} of the examples."


def _slice_row(each: Slice) -> tuple[str, ...]:
    interval = NO_VALUE if each.low is None else f"{points(each.low)} to {points(each.high)}"
    return (
        each.title, f"{each.examples:,}", points(each.baseline), points(each.score), points(each.worse), interval,
    )  # fmt: skip


def _slices_legend(changes: PredictionChanges) -> Iterator[str]:
    if changes.slices:
        what = (
            "mean absolute error, in units of the label"
            if changes.regression
            else "share predicted correctly, in points"
        )
        yield f"{'error' if changes.regression else 'accuracy'}: {what}; means over the seeds."
        yield "95 %: confidence interval of the difference. About 1 in 20 such intervals misses the true value."


def reproduce(report: Report) -> Section:
    """The command, with the recipe, device and versions of the run."""
    return Section(
        "How to reproduce this",
        facts=(
            ("study", f"{report.study}, created {report.created}, finished {report.finished or '(interrupted)'}"),
            ("recipe", pairs(report.recipe)),
            ("device", pairs(report.device)),
            ("versions", pairs(report.versions)),
        ),
        code=f"$ {report.command}" if report.command else "",
    )
