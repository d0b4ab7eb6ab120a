"""Plot the mean degradation of every strategy over several tasks (*Poor Man's BERT*, Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from budget_search.core.config import slug
from budget_search.core.formatting import plural, points
from budget_search.report.comparisons.strategy_averages import STRATEGIES, Averages, averages
from budget_search.report.plots.figures import (
    INK,
    MARKERS,
    MUTED,
    PAPER,
    STRATEGY_COLOURS,
    draw_pictures,
    figure_of,
    mark,
    new_axes,
)
from budget_search.report.report import Report


def _strategies(means: Averages) -> Figure | None:
    """Mean points lost over the tasks by number of dropped layers, a line per strategy (Poor Man's BERT, Figure 2)."""
    if not means.means:
        return None
    axes = new_axes(4.0)
    axes.axhline(0, color=MUTED, linewidth=0.9)
    mark(axes, 0, 0, "D", f"all {means.layers_total} layers: {points(means.full_score)}", color=INK, markersize=7)
    styles = {
        name: (marker, colour) for name, marker, colour in zip(STRATEGIES, MARKERS, STRATEGY_COLOURS, strict=True)
    }
    for name, (marker, colour) in styles.items():
        members = [each for each in means.means if each.strategy == name]
        if not members:
            continue
        axes.plot([each.dropped for each in members], [each.lost for each in members], color=colour, alpha=0.7)
        axes.plot([], [], label=name, color=colour, marker=marker, markersize=5.5)
        for each in members:
            complete = len(each.tasks) == len(means.tasks)
            tip = f"{name}, {each.dropped} dropped: {points(each.lost)} lost over {plural(len(each.tasks), 'task')}"
            mark(axes, each.dropped, each.lost, marker, tip, color=colour, markersize=6 if complete else 4,
                 markerfacecolor=PAPER if each.short else colour)  # fmt: skip
    axes.invert_yaxis()  # what loses less is higher
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"layers dropped, of {means.layers_total}")
    axes.set_ylabel(f"mean points lost over {plural(len(means.tasks), 'task')}")

    def other_scale(value: np.ndarray) -> np.ndarray:
        return np.subtract(means.full_score, value)

    score = axes.secondary_yaxis(1.0, functions=(other_scale, other_scale))  # type: ignore[arg-type]
    score.set_ylabel("full model's mean score minus the loss, points")
    axes.plot([], [], "o", label="hollow: with short fine-tunes", color=MUTED, markerfacecolor=PAPER, markersize=5.5)
    axes.legend(loc="best")
    return figure_of(axes)


def draw_averages(reports: Sequence[Report]) -> dict[str, Figure]:
    """The plot ``strategies``; for several models one each, with the model in its name."""
    all_means = averages(reports)
    return {
        name if len(all_means) == 1 else f"{name}-{slug(means.model)}": figure
        for means in all_means
        for name, figure in draw_pictures({"strategies": _strategies}, means).items()
    }
