"""Mean scores over several tasks, by strategy and number of dropped layers (*Poor Man's BERT*, Figure 2)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from budget_search.core.formatting import NO_VALUE, plural, points
from budget_search.core.layers import FAMILIES
from budget_search.report.comparisons.measured_sets import MeasuredSet, best_by_depth, measured_sets, strategy_sets
from budget_search.report.layout import Grid, Section
from budget_search.report.report import Report

BEST = "best measured"
STRATEGIES = (*FAMILIES, "contribution", "greedy", BEST)
# Short, so that all columns fit into a terminal.
HEADINGS = {
    "odd-alternate": "odd alt.",
    "even-alternate": "even alt.",
    "symmetric": "symm.",
    "contribution": "contrib.",
    BEST: "best",
}


@dataclass(frozen=True)
class Average:
    """The mean over those ``tasks`` that measured a strategy's set with this many layers dropped.

    ``score`` and ``lost`` are in points; a loss is against all layers at the same rung. ``short``: some of the tasks
    measured the set in screens only.
    """

    strategy: str
    dropped: int
    tasks: tuple[str, ...]
    score: float
    lost: float
    short: bool


@dataclass(frozen=True)
class Averages:
    """One model: the mean score of all layers over all ``tasks``, and an average per strategy and number of dropped
    layers."""

    model: str
    layers_total: int
    tasks: tuple[str, ...]
    full_score: float
    means: tuple[Average, ...]


def averages(reports: Sequence[Report]) -> list[Averages]:
    """One per model and method. Of several studies of a task, the longest fine-tune of a set counts."""
    by_model: dict[tuple[str, int], list[Report]] = {}
    for report in reports:
        by_model.setdefault((report.treated_model, report.layers_total), []).append(report)
    return [_of_one_model(model, total, studies) for (model, total), studies in by_model.items()]


def _of_one_model(model: str, total: int, studies: Sequence[Report]) -> Averages:
    baselines = {report.task: report.baseline.score for report in studies}
    measured: dict[tuple[str, int], dict[str, MeasuredSet]] = {}
    for report in studies:
        for name, members in {**strategy_sets(report), BEST: best_by_depth(measured_sets(report))}.items():
            for each in members:
                by_task = measured.setdefault((name, total - each.depth), {})
                by_task[report.task] = _longest(each, by_task.get(report.task))
    return Averages(
        model,
        total,
        tuple(baselines),
        statistics.fmean(baselines.values()),
        tuple(
            Average(
                name,
                dropped,
                tuple(by_task),
                statistics.fmean(each.score for each in by_task.values()),
                statistics.fmean(each.lost for each in by_task.values()),
                not all(each.confirmed for each in by_task.values()),
            )
            for (name, dropped), by_task in sorted(measured.items(), key=lambda item: _place(*item[0]))
        ),
    )


def _place(strategy: str, dropped: int) -> tuple[int, int]:
    return STRATEGIES.index(strategy), dropped


def _longest(one: MeasuredSet, other: MeasuredSet | None) -> MeasuredSet:
    """The measurement with the longer fine-tune; ties go to the smaller loss."""
    if other is None:
        return one
    return max(one, other, key=lambda each: (each.confirmed, each.rung, -each.lost))


def averages_sections(all_means: Iterable[Averages]) -> list[Section]:
    """Per model a table of mean scores and one of mean losses: a row per number of dropped layers."""
    return [section for means in all_means for section in _sections(means)]


def _sections(means: Averages) -> list[Section]:
    over = plural(len(means.tasks), "task")
    title = f"{means.model} over {over} ({', '.join(means.tasks)})"
    columns = [name for name in STRATEGIES if any(each.strategy == name for each in means.means)]
    cells = {(each.strategy, each.dropped): each for each in means.means}
    rows = sorted({each.dropped for each in means.means})

    def grid(which: str, full: float) -> Grid:
        first = ("0", *(points(full) for _ in columns))
        body = [(str(k), *(_cell(cells.get((name, k)), which, means) for name in columns)) for k in rows]
        headers = ("dropped", *(HEADINGS.get(name, name) for name in columns))
        return Grid(headers, (first, *body), {header: max(7, len(header.split()[-1])) for header in headers}, headers)

    marks = tuple(_marks(means, columns))
    return [
        Section(
            f"Mean score of {title}",
            grid=grid("score", means.full_score),
            legend=("Each task in its own metric, in points, by the number of dropped layers.", *marks),
        ),
        Section(f"Mean points lost of {title}", grid=grid("lost", 0.0), legend=marks),
    ]


def _marks(means: Averages, columns: Sequence[str]) -> Iterator[str]:
    if shortened := [f"{HEADINGS[name]}: {name}" for name in columns if name in HEADINGS]:
        yield f"{', '.join(shortened)}."
    if any(len(each.tasks) < len(means.tasks) for each in means.means):
        yield f"(n): measured on n of the {len(means.tasks)} tasks only; the mean is over these."
    if any(each.short for each in means.means):
        yield (
            "~ some in short fine-tunes only, which lowers the scores; the losses are relative to the full model after "
            "an equal fine-tune."
        )


def _cell(mean: Average | None, which: str, means: Averages) -> str:
    if mean is None:
        return NO_VALUE
    number = f"{'~' if mean.short else ''}{points(getattr(mean, which))}"
    return number if len(mean.tasks) == len(means.tasks) else f"{number} ({len(mean.tasks)})"


def flat_rows(means: Averages) -> list[dict[str, object]]:
    """One row per strategy and number of dropped layers, unrounded; the full model's first."""
    full = Average("full model", 0, means.tasks, means.full_score, 0.0, short=False)
    return [
        {
            "model": means.model,
            "layers_total": means.layers_total,
            "strategy": each.strategy,
            "dropped": each.dropped,
            "tasks": len(each.tasks),
            "score": each.score,
            "lost": each.lost,
            "short": each.short,
        }
        for each in (full, *means.means)
    ]
