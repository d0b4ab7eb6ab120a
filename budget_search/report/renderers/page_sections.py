"""What a page has room for beyond the terminal's sections: any allowed loss, where it got worse, how to reproduce."""

from __future__ import annotations

from collections.abc import Iterator

from budget_search.core.formatting import NO_VALUE, pairs, plural, points, share, tolerance
from budget_search.core.layers import compact_indices
from budget_search.report.entries import PredictionChanges, Result, Slice
from budget_search.report.layout import Grid, Section
from budget_search.report.measured_sets import MeasuredSet, Reading, distinct_answers, readings
from budget_search.report.paper_protocols import beside_the_papers
from budget_search.report.report import Report

WHICH_ANSWERS = "With every seed. Texts are as the tokenizer gives them back, long ones shortened."
WHICH_SCORES = "Those that moved farthest from the right score, then towards it; means over the seeds."


def details(report: Report) -> list[Section]:
    """These sections, without those that a report has nothing for."""
    found = [any_loss(report)] if report.trials else []
    found += beside_the_papers(report)
    for result in distinct_answers(report):
        found += where_worse(result)
    return [*found, reproduce(report)]


def any_loss(report: Report) -> Section:
    """An answer for every delta from half a point to five, read off what was measured."""
    rows = tuple(_reading_row(report, reading) for reading in readings(report))
    headers = ("allowed loss", "fewest layers confirmed", "points lost", "a short fine-tune points to")
    return Section(
        "For any allowed loss",
        grid=Grid(headers, rows, {"fewest layers confirmed": 20}, ("points lost",)),
        legend=(
            "Read off the layer sets that were measured. A loss that the search was not asked for may allow fewer "
            "layers: ask with --delta, which reuses everything measured.",
            "points to: lost no more than this against all layers given the same short fine-tune; not confirmed.",
        ),
    )


def _reading_row(report: Report, reading: Reading) -> tuple[str, ...]:
    confirmed, screened = reading.confirmed, reading.screened
    lowest = "" if reading.low == reading.high else f"{100 * reading.low:g} to "
    return (
        f"{lowest}{tolerance(reading.high)}",
        f"{report.layers_total} (all)" if confirmed is None else _named(confirmed),
        points(0.0) if confirmed is None else points(confirmed.lost),
        NO_VALUE if screened is None else _named(screened),
    )


def _named(measured: MeasuredSet) -> str:
    return f"{measured.depth} ({compact_indices(measured.kept)})"


def where_worse(result: Result) -> Iterator[Section]:
    """By label and length, and the answers that flipped; nothing for the full model or an old report."""
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
            f"Examples that {name} answer otherwise",
            grid=Grid(("example", "right answer", "all layers", "these layers"), rows),
            legend=(WHICH_SCORES if changes.regression else WHICH_ANSWERS,),
        )


def _churn(changes: PredictionChanges) -> Iterator[str]:
    if changes.regression:
        text = f"Predictions differ from the full model's with the same seed by {changes.churn:.3g} on average"
        if changes.churn_between_seeds is not None:
            text += f"; those of two full models that differ in their seed alone, by {changes.churn_between_seeds:.3g}"
        yield f"{text} (mean absolute difference over {changes.examples:,} {changes.split} examples)."
        return
    lost, won = changes.lost or 0.0, changes.won or 0.0
    text = (
        f"Of {changes.examples:,} {changes.split} examples, {share(changes.churn)} are answered otherwise than by the "
        f"full model with the same seed: {share(lost)} went from right to wrong, {share(won)} from wrong to right"
    )
    between = changes.churn - lost - won
    yield f"{text}, {share(between)} from one wrong answer to another." if between > 1e-9 else f"{text}."
    if changes.churn_between_seeds is not None:
        yield (
            f"Two full models that differ in their seed alone disagree on {share(changes.churn_between_seeds)}: so "
            "much would change anyhow."
        )
    if changes.directions:
        ways = (f"{each.before} became {each.after} in {share(each.share)}" for each in changes.directions)
        yield f"Which way: {', '.join(ways)} of the examples."


def _slice_row(each: Slice) -> tuple[str, ...]:
    interval = NO_VALUE if each.low is None else f"{points(each.low)} to {points(each.high)}"
    return (
        each.title, f"{each.examples:,}", points(each.baseline), points(each.score), points(each.worse), interval,
    )  # fmt: skip


def _slices_legend(changes: PredictionChanges) -> Iterator[str]:
    if changes.slices:
        what = (
            "mean absolute error, in units of the label" if changes.regression else "share answered rightly, in points"
        )
        yield f"{'error' if changes.regression else 'accuracy'}: {what}; means over the seeds."
        yield "95 %: interval of what is lost. Of 20 such intervals about one misses the truth by chance."


def reproduce(report: Report) -> Section:
    """The command, and with what it ran."""
    return Section(
        "Reproduce it",
        facts=(
            ("study", f"{report.study}, begun {report.created}, finished {report.finished or '(interrupted)'}"),
            ("recipe", pairs(report.recipe)),
            ("device", pairs(report.device)),
            ("versions", pairs(report.versions)),
        ),
        code=f"$ {report.command}" if report.command else "",
    )
