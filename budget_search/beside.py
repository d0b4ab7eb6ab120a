"""Other models beside a study's answers, in the manner of Table 4 of *Poor Man's BERT* (Sajjad et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from budget_search.curves import distinct_answers
from budget_search.layers import compact_indices
from budget_search.layout import Grid, Section
from budget_search.report import Reference, Report, Result
from budget_search.wording import NOTHING, count, percent, points, with_spread

# Characters of a name on one line of a terminal.
LONGEST_MODEL, LONGEST_TASK = 14, 10


def beside(reports: Sequence[Report]) -> Section:
    """The baseline, the answers and the reference models of every report that has any, the best score first."""
    headers = ("task", "model", "layers", "param.", "saved", "score", "loss (at most)", "seeds")
    rows = tuple(row for report in reports if report.references for row in _rows(report))
    widths = {"task": LONGEST_TASK, "model": LONGEST_MODEL, "layers": 8, "score": 8, "loss (at most)": 8}
    return Section(
        "Beside other models",
        grid=Grid(headers, rows, widths, ("param.", "saved", "score", "loss (at most)", "seeds")),
        legend=(
            "Every model fine-tuned whole or with the layers named, by the same recipe, on the same examples, with the "
            "same seeds: the full model, then the best score first. score: the mean on certification.",
            "saved, loss: against the first model's full depth; in brackets what the loss is at most, at the study's "
            "confidence.",
        ),
    )


def _rows(report: Report) -> Iterator[tuple[str, ...]]:
    baseline = report.baseline
    spread = with_spread(baseline.score, baseline.std)
    full = (str(report.layers_total), count(baseline.parameters), NOTHING, spread, points(0.0), str(baseline.seeds))
    yield report.task, report.model, *full
    measured: list[Result | Reference] = [result for result in distinct_answers(report) if not result.is_full]
    for each in sorted([*measured, *report.references], key=lambda one: -one.score):
        upper = "" if each.degradation_upper is None else f" ({points(each.degradation_upper)})"
        yield (
            report.task,
            *_named(report, each),
            count(each.parameters),
            percent(each.parameters_saved),
            with_spread(each.score, each.std),
            f"{points(each.degradation)}{upper}",
            str(each.seeds),
        )


def _named(report: Report, each: Result | Reference) -> tuple[str, str]:
    """The model and its layers."""
    if isinstance(each, Result):
        return report.model, f"{each.depth} ({compact_indices(each.kept)})"
    return each.model, str(each.layers_total)
